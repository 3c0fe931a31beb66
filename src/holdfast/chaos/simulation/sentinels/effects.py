"""Planned failures and blocks of the effects of a simulated instance."""

from __future__ import annotations

from collections import deque
from typing import Any

from holdfast.chaos.simulation.sentinels.plan import Planned

Run = Any  # of the module `run`, which imports this one


class EffectFailure(OSError):
    """The planned failure of an effect."""


class PlannedEffects:
    """Effects that will fail or block, by name, in the order in which they were planned."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._waiting: dict[str, deque[tuple[int, float]]] = {}

    def plan(self, item: Planned) -> None:
        """Let the next calls of an effect fail or block."""
        self._waiting.setdefault(item.what, deque()).append((item.times, item.seconds))

    def take(self, name: str) -> None:
        """Pass an effect; a planned failure raises, a planned block lets time pass."""
        waiting, run = self._waiting.get(name), self._run
        if not waiting:
            return
        times, seconds = waiting.popleft()
        if times > 1:
            waiting.appendleft((times - 1, seconds))
        run.tally.failed_effects[name] += 1
        run.note(f"effect {name} {'blocks' if seconds else 'fails'}")
        if seconds:
            run.scheduler.sleep(seconds)
            return
        raise EffectFailure(24, "Too many open files", name)
