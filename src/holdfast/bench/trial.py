"""One trial: the same load without and with a fault, judged token by token and by what each client waited.

Shared by the demo and the recovery benchmark. `judge` is pure; the rest talks to a running server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.chaos.checker import RunVerdict, compare_runs, interruption_s, longest_gap_s
from holdfast.chaos.control import FAULT, RECOVERED, Control, ControlFailed, monotonic_of
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load
from holdfast.core.injection import InjectionSpec

RECOVERY_TIMEOUT_S = 10.0  # after the load has ended


@dataclass(frozen=True)
class Outcome:
    """What a faulted run did to its clients. Seconds; `interruptions_s` by answer, None for one that had ended."""

    verdict: RunVerdict
    interruptions_s: Mapping[str, float | None]
    reference_gap_s: float
    client_lag_s: float
    events: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...]

    @property
    def lawful(self) -> bool:
        return not self.problems

    def waits_s(self) -> list[float]:
        return [wait for wait in self.interruptions_s.values() if wait is not None]


@dataclass(frozen=True)
class Window:
    """From the first fault's report to the end of the last recovery, on this process's monotonic clock."""

    fault_s: float
    recovered_s: float


def window_of(events: Sequence[Mapping[str, Any]]) -> Window | None:
    """The window that some events span; None before a fault was reported."""
    faults = [event["at"] for event in events if event["kind"] == FAULT]
    if not faults:
        return None
    ends = [event["at"] for event in events if event["kind"] == RECOVERED]
    return Window(monotonic_of(min(faults)), monotonic_of(max(ends)) if ends else float("inf"))


def judge(
    reference: Sequence[History], load: Load, events: Sequence[Mapping[str, Any]], problems: Sequence[str]
) -> Outcome:
    """Everything that a trial showed, with every law that was broken; `problems` are those known already."""
    verdict, window = compare_runs(reference, load.histories), window_of(events)
    return Outcome(
        verdict=verdict,
        interruptions_s=_interruptions(reference, load.histories, window),
        reference_gap_s=max((longest_gap_s(one) for one in reference), default=0.0),
        client_lag_s=load.longest_lag_s(window.fault_s, window.recovered_s) if window else 0.0,
        events=tuple(events),
        problems=(*problems, *verdict.reasons, *_missing_events(events)),
    )


def _interruptions(
    reference: Sequence[History], observed: Sequence[History], window: Window | None
) -> dict[str, float | None]:
    twins = {one.name: one for one in reference}
    return {
        one.name: interruption_s(twins.get(one.name, one), one, window.fault_s, window.recovered_s) if window else None
        for one in observed
    }


def _missing_events(events: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {event["kind"] for event in events}
    wanted = ((FAULT, "no fault was reported"), (RECOVERED, "no recovery was reported"))
    return [problem for kind, problem in wanted if kind not in kinds]


async def run_reference(load: Load, control: Control) -> tuple[list[History], list[str]]:
    """The fault-free run, and what was wrong with it: a fault from before that came late would spoil it."""
    before = await control.last_sequence()
    histories = await load.run()
    spoilt = any(event["kind"] == FAULT for event in await control.events(before))
    return histories, ["a fault came in the fault-free run"] if spoilt else []


async def run_faulted(
    load: Load, control: Control, reference: Sequence[History], injection: InjectionSpec, problems: Sequence[str] = ()
) -> Outcome:
    """Arm a fault, run the load into it, and judge.

    The fault is armed before the first request and comes after a number of steps: that is a moment of the run,
    which how late a client or a control call comes does not move.
    """
    before = await control.last_sequence()
    await control.inject(injection)
    await load.run()
    events, unwell = await _aftermath(control, before, injection.times)
    return judge(reference, load, events, [*problems, *([unwell] if unwell else [])])


async def _aftermath(control: Control, before: int, faults: int) -> tuple[list[dict[str, Any]], str | None]:
    """What happened since `before`, and why the instance is not well; a server that is gone is not well."""
    events: list[dict[str, Any]] = []
    try:
        events = await control.wait_recovered(before, faults=faults, timeout_s=RECOVERY_TIMEOUT_S)
        return events, await control.unwell()
    except ControlFailed as error:
        return events, str(error)
