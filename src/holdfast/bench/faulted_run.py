"""The same load without and with a fault, compared token by token and by the waits of each client.

Shared by the demo and the recovery benchmark. `judge` is pure; the rest of the module talks to a running server.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.bench.incident import Events, Window, blast_radius, felt_window, has_moved, misreported, window_of
from holdfast.bench.topologies import Topology
from holdfast.chaos.checker import (
    RunComparison,
    compare_runs,
    gaps_touching_s,
    interruption_s,
    longest_gap_s,
    percentile,
)
from holdfast.chaos.control import DECIDED, ENDED, FAULT, LOST, RECOVERED, RESTARTED, Control, ControlFailed
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load
from holdfast.core.faults.injection import FaultKind, InjectionSpec

RECOVERY_TIMEOUT_S = 10.0  # after the load has ended
RESTART_TIMEOUT_S = 240.0  # the same, where another engine core has to start meanwhile


@dataclass(frozen=True)
class Reference:
    """A fault-free run, with the problems found in the run."""

    histories: Sequence[History]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neighbours:
    """Streams of engines that share no collective with the faulty engine. Seconds between two tokens.

    `longest_gap_s` covers gaps that touch the time from the fault to the end of the recovery. After the loss of an
    engine core, that time ends when its requests have moved; `restart_gap_s` then covers gaps until the replacement
    serves.
    """

    streams: int
    longest_gap_s: float
    fault_free_p999_s: float  # the same streams without a fault: 99.9 % of the gaps were not longer
    fault_free_longest_gap_s: float
    restart_gap_s: float | None = None

    @property
    def undisturbed(self) -> bool:
        return self.longest_gap_s <= self.fault_free_p999_s


@dataclass(frozen=True)
class EndedAlone:
    """The answer to a poison request: delivered tokens, expected tokens, and the error told to the client."""

    name: str
    tokens: int
    expected: int
    error: str


@dataclass(frozen=True)
class RunResult:
    """Effects of a faulted run on the clients. Seconds; `interruptions_s` by answer, None for an untouched answer.

    An answer is untouched when it ended before the fault, or when its engine kept running. Answers to poison requests
    are in `ended_alone` only.
    """

    comparison: RunComparison
    interruptions_s: Mapping[str, float | None]
    reference_gap_s: float
    client_lag_s: float
    events: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...]
    neighbours: Neighbours | None = None
    engines: Mapping[str, int | None] = field(
        default_factory=dict
    )  # by answer; None unless the answer was pinned to an engine
    ended_alone: tuple[EndedAlone, ...] = ()

    @property
    def lawful(self) -> bool:
        return not self.problems

    @property
    def faults(self) -> int:
        """Return the number of decisions made."""
        return sum(event["kind"] == DECIDED for event in self.events)

    def waits_s(self) -> list[float]:
        return [wait for wait in self.interruptions_s.values() if wait is not None]


def judge(
    reference: Sequence[History],
    load: Load,
    events: Events,
    problems: Sequence[str],
    *,
    is_fault: bool = True,
    poison: str = "",
) -> RunResult:
    """Judge a run and collect every law that was broken; `problems` are the problems known already.

    Without `is_fault`, any reported fault is a problem. The request named `poison` must end alone.
    """
    poison_names = load.named(poison)
    twins, observed = _without(poison_names, reference), _without(poison_names, load.histories)
    comparison, window = compare_runs(twins, observed), window_of(events)
    found = (*problems, *comparison.reasons, *(_missing_events(events) if is_fault else _hung_ranks(events)))
    return RunResult(
        comparison=comparison,
        interruptions_s=_interruptions(twins, observed, events),
        reference_gap_s=max((longest_gap_s(one) for one in twins), default=0.0),
        client_lag_s=load.longest_lag_s(window.fault_s, window.recovered_s) if window else 0.0,
        events=tuple(events),
        problems=(*found, *not_ended_alone(poison_names, reference, load.histories, events)),
        neighbours=_neighbours(twins, observed, events),
        engines={one.name: one.engine_id for one in observed},
        ended_alone=tuple(_ended_alone(poison_names, reference, load.histories)),
    )


def _without(names: Collection[str], histories: Sequence[History]) -> list[History]:
    """Return the histories whose names are not listed."""
    return [one for one in histories if one.name not in names]


def _ended_alone(
    poison_names: Collection[str], reference: Sequence[History], observed: Sequence[History]
) -> Iterator[EndedAlone]:
    expected = {one.name: len(one.token_ids) for one in reference}
    for one in observed:
        if one.name in poison_names:
            yield EndedAlone(one.name, len(one.token_ids), expected.get(one.name, 0), one.error or "")


def not_ended_alone(
    poison_names: Collection[str], reference: Sequence[History], observed: Sequence[History], events: Events
) -> Iterator[str]:
    """Yield every problem with the end of the poison requests; nothing without poison requests."""
    twins = {one.name: one for one in reference}
    incidents = [str(event["incident"]) for event in events if event["kind"] == ENDED]
    if len(incidents) != len(poison_names):
        yield f"{len(incidents)} requests were reported as ended, {len(poison_names)} are poison requests"
    for one in (history for history in observed if history.name in poison_names):
        if not any(incident in (one.error or "") for incident in incidents):
            yield f"{one.name}: poison request, but its client was told {one.error or 'nothing'}"
        if one.token_ids != twins[one.name].token_ids[: len(one.token_ids)]:
            yield f"{one.name}: tokens differ before the end of the request"


Waits = dict[str, float | None]


def _interruptions(reference: Sequence[History], observed: Sequence[History], events: Events) -> Waits:
    twins, engine_ids = {one.name: one for one in reference}, {one.engine_id for one in observed}
    return {
        one.name: _interruption(twins.get(one.name, one), one, felt_window(events, one.engine_id, engine_ids))
        for one in observed
    }


def _interruption(reference: History, observed: History, window: Window | None) -> float | None:
    return interruption_s(reference, observed, window.fault_s, window.recovered_s) if window else None


def _neighbours(reference: Sequence[History], observed: Sequence[History], events: Events) -> Neighbours | None:
    """Return the figures of streams on untouched engines; None without any."""
    spared = [one for one in observed if one.engine_id is not None and window_of(events, one.engine_id) is None]
    window, whole = _window_beside(events, {one.engine_id for one in observed}), window_of(events)
    gaps = [gap for one in spared for gap in _gaps_in(window, one)] if window else []
    if not gaps:
        return None
    names = {one.name for one in spared}
    usual = sorted(gap for one in reference if one.name in names for gap in one.gaps_s())
    return Neighbours(
        streams=len(spared),
        longest_gap_s=max(gaps),
        fault_free_p999_s=percentile(usual, 0.999) if usual else 0.0,
        fault_free_longest_gap_s=usual[-1] if usual else 0.0,
        restart_gap_s=max(gap for one in spared for gap in _gaps_in(whole, one)) if whole and whole != window else None,
    )


def _window_beside(events: Events, engine_ids: Collection[int | None]) -> Window | None:
    """Return the window in which streams of untouched engines could notice the fault."""
    moved = [one for one in engine_ids if has_moved(events, one, engine_ids)]
    return felt_window(events, moved[0], engine_ids) if moved else window_of(events)


def _gaps_in(window: Window, history: History) -> list[float]:
    return gaps_touching_s(history, window.fault_s, window.recovered_s)


def _missing_events(events: Events) -> list[str]:
    kinds = {event["kind"] for event in events}
    wanted = (({FAULT, LOST}, "no fault was reported"), ({RECOVERED, RESTARTED}, "no recovery was reported"))
    return [problem for any_of, problem in wanted if not any_of & kinds]


def _hung_ranks(events: Events) -> list[str]:
    return [f"no fault, but reported: {event['kind']}" for event in events if event["kind"] in {FAULT, LOST}]


async def run_reference(load: Load, control: Control) -> Reference:
    """Run the load without a fault and record problems: a late fault of an earlier run would spoil the reference."""
    before = await control.last_sequence()
    histories = await load.run()
    spoilt = any(event["kind"] == FAULT for event in await control.events(before))
    return Reference(histories, ("a fault was reported in the fault-free run",) if spoilt else ())


async def run_faulted(
    load: Load, control: Control, reference: Reference, injection: InjectionSpec, topology: Topology
) -> RunResult:
    """Arm a fault, run the load, and judge the result.

    The fault is armed before the first request and comes after a number of steps. That moment of the run does not
    depend on delays of a client or of a control call.
    """
    before = await control.last_sequence()
    await control.inject(injection)
    await load.run()
    events, unwell = await _aftermath(control, before, injection)
    problems = [*reference.problems, *([unwell] if unwell else [])]
    is_fault = injection.kind is not FaultKind.SLOW
    if is_fault and any(event["kind"] in {FAULT, LOST} for event in events):
        problems += misreported(events, injection)
        problems += blast_radius(events, topology.lockstep_group(injection.engine_id))
    return judge(reference.histories, load, events, problems, is_fault=is_fault, poison=injection.request)


async def _aftermath(
    control: Control, before: int, injection: InjectionSpec
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the events since `before`, and why the instance is not healthy; a server that has ended is not."""
    events: list[dict[str, Any]] = []
    try:
        timeout_s = RESTART_TIMEOUT_S if injection.kills_engine_core else RECOVERY_TIMEOUT_S
        events = await control.wait_recovered(before, faults=_recoveries(injection), timeout_s=timeout_s)
        return events, await control.unwell()
    except ControlFailed as error:
        return events, str(error)


def _recoveries(injection: InjectionSpec) -> int:
    """Return the least number of recoveries to wait for.

    All further recoveries of a poison request are over before the load has ended.
    """
    if injection.kind is FaultKind.SLOW:
        return 0
    return 1 if injection.request else injection.times
