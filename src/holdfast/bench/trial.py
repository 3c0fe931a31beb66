"""One trial: the same load without and with a fault, judged token by token and by what each client waited.

Shared by the demo and the recovery benchmark. `judge` is pure; the rest talks to a running server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.chaos.checker import RunVerdict, compare_runs, interruption_s, longest_gap_s
from holdfast.chaos.control import FAULT, RECOVERED, Control, monotonic_of
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load
from holdfast.core.injection import InjectionSpec


@dataclass(frozen=True)
class Outcome:
    """What a faulted run did to its clients. Seconds; `interruptions_s` by answer, None for one that had ended."""

    verdict: RunVerdict
    interruptions_s: Mapping[str, float | None]
    reference_gap_s: float
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
    reference: Sequence[History],
    observed: Sequence[History],
    events: Sequence[Mapping[str, Any]],
    window: Window | None,
    unwell: str | None,
) -> Outcome:
    """Everything that a trial showed, with every law that was broken."""
    verdict = compare_runs(reference, observed)
    problems = [*verdict.reasons, *_missing_events(events), *([unwell] if unwell else [])]
    waits = {one.name: interruption_s(one, window.fault_s, window.recovered_s) if window else None for one in observed}
    gap_s = max((longest_gap_s(one) for one in reference), default=0.0)
    return Outcome(verdict, waits, gap_s, tuple(events), tuple(problems))


def _missing_events(events: Sequence[Mapping[str, Any]]) -> list[str]:
    kinds = {event["kind"] for event in events}
    wanted = ((FAULT, "no fault was reported"), (RECOVERED, "no recovery was reported"))
    return [problem for kind, problem in wanted if kind not in kinds]


async def run_faulted(
    load: Load, control: Control, reference: Sequence[History], injection: InjectionSpec, *, after_tokens: int
) -> Outcome:
    """Run a load and arm a fault once every answer has `after_tokens` tokens; 0 arms it before the first request."""
    before = await control.last_sequence()
    if after_tokens == 0:
        await control.inject(injection)
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        if after_tokens > 0:
            await load.wait_for_tokens(after_tokens)
            await control.inject(injection)
    events = await control.wait_recovered(before, faults=injection.times)
    return judge(reference, load.histories, events, window_of(events), await control.unwell())
