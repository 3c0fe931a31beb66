"""Reads an incident off the event stream: when it was noticed, who stood still, when it was over.

Pure. Events carry wall-clock seconds of this machine; a `Window` is on this process's monotonic clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.chaos.control import ARMED, ATTACHED, FAULT, PAUSED, RECOVERED, RECOVERY_STARTED, is_over, monotonic_of
from holdfast.core.faults import FaultClass
from holdfast.core.injection import FaultKind, InjectionSpec

Events = Sequence[Mapping[str, Any]]

_UNEVENTFUL = (ARMED, ATTACHED)


@dataclass(frozen=True)
class Window:
    """From the first fault to the end of the last recovery."""

    fault_s: float
    recovered_s: float


def window_of(events: Events, engine_id: int | None = None) -> Window | None:
    """The window of one engine, or of all; None where nothing happened to it, without an end until it is healthy.

    An engine that was only paused, because a peer of its lockstep group failed, has a window as well.
    """
    of_engines = [e for e in events if "engine_id" in e]
    own = [e for e in of_engines if e["kind"] not in _UNEVENTFUL and engine_id in (None, e["engine_id"])]
    if not own:
        return None
    begin_s = monotonic_of(min(noticed_at(event) for event in own))
    ends = [event["at"] for event in own if event["kind"] == RECOVERED]
    return Window(begin_s, monotonic_of(max(ends)) if is_over(own) else float("inf"))


def noticed_at(event: Mapping[str, Any]) -> float:
    """When what an event tells of was noticed, where it happened; where nobody knows, when it was published."""
    fault = event.get("fault") or {}
    return float(fault.get("at") or event["at"])


def root_cause(events: Events) -> Mapping[str, Any] | None:
    """The report of the fault that the others followed from: peers only say that a collective broke under them."""
    reports = [event for event in events if event["kind"] == FAULT]
    own = [event for event in reports if event["fault"].get("fault_class") != FaultClass.COMMUNICATOR]
    return next(iter(own or reports), None)


def paused_s(events: Events) -> float | None:
    """From the moment the fault was noticed until every rank of the lockstep group stood still."""
    cause = root_cause(events)
    before = itertools.takewhile(lambda event: event["kind"] != RECOVERY_STARTED, events)
    stood_at = [event["at"] for event in before if event["kind"] == PAUSED]
    return max(0.0, max(stood_at) - noticed_at(cause)) if cause is not None and stood_at else None


def rebuild_s(events: Events) -> float | None:
    """What the slowest engine needed to rebuild its collectives."""
    reports = [event["report"] for event in events if event.get("report")]
    return max((float(report.get("rebuild_s", 0.0)) for report in reports), default=None)


def misreported(events: Events, injection: InjectionSpec) -> list[str]:
    """What is wrong with how a fault was told: an operator must read the rank and the phase that failed."""
    cause = root_cause(events)
    if cause is None:
        return []
    rank = injection.rank if injection.phase.in_worker else None
    phase = str(injection.phase) if injection.kind is FaultKind.RAISE else None  # the dead do not say where they died
    expected, told = (injection.engine_id, rank, phase), _place_told(cause["fault"])
    return [] if told == expected else [f"the cause was reported as {_in_words(told)}, it was {_in_words(expected)}"]


Place = tuple[int | None, int | None, str | None]


def _place_told(fault: Mapping[str, Any]) -> Place:
    return fault.get("engine_id"), fault.get("rank"), fault.get("phase")


def _in_words(place: Place) -> str:
    engine_id, rank, phase = place
    return f"engine {engine_id}" + ("" if rank is None else f" rank {rank}") + f" at {phase or 'an unknown phase'}"


def blast_radius(events: Events, group: frozenset[int]) -> list[str]:
    """Who paused without sharing a collective with the faulty rank, and who should have paused and did not."""
    paused = {event["engine_id"] for event in events if event["kind"] == PAUSED}
    strangers = [f"engine {one} paused without sharing a collective with it" for one in sorted(paused - group)]
    return strangers + [f"engine {one} of the lockstep group did not pause" for one in sorted(group - paused)]
