"""Reads an incident from the event stream: detection, paused engines, end of the recovery.

Pure. Events carry wall-clock seconds of this machine; a `Window` is on this process's monotonic clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.chaos.control import (
    ARMED,
    ATTACHED,
    FAULT,
    LOST,
    PAUSED,
    RECOVERED,
    RECOVERY_STARTED,
    RESTARTED,
    STANDBYS_CHANGED,
    is_over,
    monotonic_of,
)
from holdfast.core.faults.faults import FaultClass
from holdfast.core.faults.injection import FaultKind, InjectionSpec

Events = Sequence[Mapping[str, Any]]

_UNEVENTFUL = (ARMED, ATTACHED, STANDBYS_CHANGED)
# From the loss of an engine core until its requests flow at a sibling, late messages included.
MOVED_WITHIN_S = 1.0


@dataclass(frozen=True)
class Window:
    """From the first fault to the end of the last recovery."""

    fault_s: float
    recovered_s: float


def window_of(events: Events, engine_id: int | None = None) -> Window | None:
    """Return the window of an engine, or of all engines; None without an incident, open-ended until healthy.

    An engine that only paused because a peer of its lockstep group failed has a window as well.
    """
    of_engines = [e for e in events if "engine_id" in e]
    own = [e for e in of_engines if e["kind"] not in _UNEVENTFUL and engine_id in (None, e["engine_id"])]
    if not own:
        return None
    begin_s = monotonic_of(min(noticed_at(event) for event in own))
    ends = [event["at"] for event in own if event["kind"] in {RECOVERED, RESTARTED}]
    return Window(begin_s, monotonic_of(max(ends)) if is_over(own) else float("inf"))


def felt_window(events: Events, engine_id: int | None, engine_ids: Iterable[int | None]) -> Window | None:
    """Return the window in which streams of an engine could be interrupted.

    Streams of a lost engine core continue at a sibling at once, if a sibling is unaffected: their window ends with the
    move.
    """
    window = window_of(events, engine_id)
    if window is None or not has_moved(events, engine_id, engine_ids):
        return window
    return replace(window, recovered_s=min(window.recovered_s, window.fault_s + MOVED_WITHIN_S))


def has_moved(events: Events, engine_id: int | None, engine_ids: Iterable[int | None]) -> bool:
    """Return whether an engine core was lost while a sibling could take over the requests at once."""
    others = {one for one in engine_ids if one is not None} - {engine_id}
    return engine_id in lost_engines(events) and any(window_of(events, one) is None for one in others)


def lost_engines(events: Events) -> frozenset[int]:
    """Return the engines with a lost process."""
    return frozenset(event["engine_id"] for event in events if event["kind"] == LOST)


def noticed_at(event: Mapping[str, Any]) -> float:
    """Return the wall-clock time of detection, or of publication when the event has no fault."""
    fault = event.get("fault") or {}
    return float(fault.get("at") or event["at"])


def root_cause(events: Events) -> Mapping[str, Any] | None:
    """Return the report of the fault that came first: peers only report a broken collective."""
    reports = [event for event in events if event["kind"] == FAULT]
    own = [event for event in reports if event["fault"].get("fault_class") != FaultClass.COMMUNICATOR]
    return next(iter(own or reports), None)


def paused_s(events: Events) -> float | None:
    """Return the seconds from detection until every rank of the lockstep group had paused."""
    cause = next((event for event in events if event["kind"] == LOST), root_cause(events))
    before = itertools.takewhile(lambda event: event["kind"] != RECOVERY_STARTED, events)
    replacements = lost_engines(events)  # paused from their start until they join
    paused_at = [event["at"] for event in before if event["kind"] == PAUSED and event["engine_id"] not in replacements]
    return max(0.0, max(paused_at) - noticed_at(cause)) if cause is not None and paused_at else None


def rebuild_s(events: Events) -> float | None:
    """Return the slowest engine's seconds to rebuild collectives."""
    reports = [event["report"] for event in events if event.get("report")]
    return max((float(report.get("rebuild_s", 0.0)) for report in reports), default=None)


def replaced_s(events: Events) -> float | None:
    """Return the seconds from the loss of an engine core until a replacement served; None without either."""
    return max((event.get("interruption_s", 0.0) for event in events if event["kind"] == RESTARTED), default=None)


def misreported(events: Events, injection: InjectionSpec) -> list[str]:
    """Return every error in the report of a fault: an operator must read the rank and the phase that failed."""
    problems = _losses_misreported(lost_engines(events), injection)
    cause = root_cause(events)
    if cause is None or injection.kills_engine_core:
        return problems
    rank = injection.rank if injection.phase.in_worker else None
    says_where = injection.kind in {FaultKind.RAISE, FaultKind.OOM}  # neither the dead nor the silent do
    expected = injection.engine_id, rank, str(injection.phase) if says_where else None
    told = _place_told(cause["fault"], with_phase=not injection.kind.is_silent)
    if told != expected:
        problems.append(f"the root cause was reported as {_in_words(told)}, but was {_in_words(expected)}")
    return problems


def _losses_misreported(lost: frozenset[int], injection: InjectionSpec) -> list[str]:
    killed = {injection.engine_id} if injection.kills_engine_core else set()
    unexpected = [f"engine core {one} was lost" for one in sorted(lost - killed)]
    return unexpected + [f"the loss of engine core {one} was not reported" for one in sorted(killed - lost)]


Place = tuple[int | None, int | None, str | None]


def _place_told(fault: Mapping[str, Any], *, with_phase: bool) -> Place:
    return fault.get("engine_id"), fault.get("rank"), fault.get("phase") if with_phase else None


def _in_words(place: Place) -> str:
    engine_id, rank, phase = place
    return f"engine {engine_id}" + ("" if rank is None else f" rank {rank}") + f" at {phase or 'an unknown phase'}"


def blast_radius(events: Events, group: frozenset[int]) -> list[str]:
    """Return engines that paused without sharing a collective with the faulty rank, and engines that did not pause but
    should have."""
    paused = {event["engine_id"] for event in events if event["kind"] == PAUSED}
    strangers = [
        f"engine {one} paused without sharing a collective with the faulty engine" for one in sorted(paused - group)
    ]
    missing = group - paused - lost_engines(events)
    return strangers + [f"engine {one} of the lockstep group did not pause" for one in sorted(missing)]
