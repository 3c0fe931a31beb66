"""Deadlines of calls: learned from calls of the same size, long for sizes that are not learned yet. Pure.

A first batch of a shape (compilation, graph capture) gets a long deadline, and so does a prefill.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque

import msgspec

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.steps import Ended, Running


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the stall detector.

    A deadline is `factor` times the slowest of the last calls of its bucket, and no shorter than the floor of its
    kind. A bucket is learned after `learned_calls` calls.
    """

    decode_floor_s: float = 1.0
    prefill_floor_s: float = 10.0
    engine_core_floor_s: float = 3.0
    unlearned_s: float = 300.0
    relearning_s: float = 20.0  # at least, of which only a hint is known, where nothing is compiled in steps
    recompiling_s: float = 120.0  # the same where something may be
    stopped_s: float = 0.8
    factor: float = 10.0
    quantile: float = 0.99
    learned_calls: int = 5
    kept_calls: int = 64
    late_s: float = 0.1  # of a look: less is no news
    may_compile: bool = False  # in any step: then one that computes may be at that
    at_work_floor_s: float = 30.0  # for who is at work for most of its call, and no deadlock
    standing_s: float = 10.0  # for which ready requests may wait while no step is planned
    standing_turns: int = 20  # of the scheduler without a step, at least


class Deadline(msgspec.Struct, frozen=True):
    """Seconds that a call may take, and the source of the bound in words."""

    seconds: float
    source: str


class Remembered:
    """The slowest call of each bucket before recoveries, of all processes together."""

    def __init__(self) -> None:
        self._slowest: dict[tuple[Phase, int], float] = {}

    def keep(self, phase: Phase, bucket: int, slowest_s: float) -> None:
        self._slowest[phase, bucket] = max(slowest_s, self._slowest.get((phase, bucket), 0.0))

    def slowest_s(self, call: Running) -> float | None:
        """Return the longest duration of calls of the same kind and at least the same size, or None."""
        like = self._like(call)
        return max((slowest for bucket, slowest in like.items() if bucket >= call.shape.bucket), default=None)

    def guessed_s(self, call: Running) -> float | None:
        """Return an estimate for a call larger than all known calls of the same kind, or None.

        Work grows at most with the square of the tokens. Needed after a loss, when many requests are computed again at
        once.
        """
        like = self._like(call)
        largest = max(like, default=None)
        return None if largest is None else like[largest] * 2.0 ** (call.shape.bucket - largest)

    def _like(self, call: Running) -> dict[int, float]:
        """Return the slowest calls of the same kind, by bucket."""
        kind = call.shape.bucket % 2
        return {b: s for (phase, b), s in self._slowest.items() if phase is call.phase and b % 2 == kind}


class Deadlines:
    """Durations of the calls of a process, by phase and bucket."""

    def __init__(self, limits: Limits, remembered: Remembered | None = None) -> None:
        self._limits = limits
        self._remembered = remembered or Remembered()
        self._lasted: defaultdict[tuple[Phase, int], deque[float]] = defaultdict(
            lambda: deque(maxlen=limits.kept_calls)
        )

    def learn(self, ended: Ended) -> None:
        """Learn the duration of a call, unless the call was the first of its shape or raised.

        A first call is compiled, captured or measured; a call that raised may have waited for a peer that hung.
        """
        if ended.is_typical:
            self._lasted[ended.phase, ended.shape.bucket].append(ended.lasted_s)

    def forget(self) -> None:
        """Start to learn anew after a recovery: peers may be new, and slow at first."""
        for (phase, bucket), lasted in self._lasted.items():
            self._remembered.keep(phase, bucket, quantile(lasted, self._limits.quantile))
        self._lasted.clear()

    def of(self, call: Running) -> Deadline:
        """Return the deadline of a call that runs."""
        limits = self._limits
        lasted = self._lasted.get((call.phase, call.shape.bucket), ())
        if call.is_first or len(lasted) < limits.learned_calls:
            return self._unlearned(call, () if call.is_first else tuple(lasted))
        slowest_s = quantile(lasted, limits.quantile)
        kind, floor_s = self._floor(call)
        if limits.factor * slowest_s <= floor_s:
            return Deadline(
                floor_s, f"the least for a {kind}; of {len(lasted)} like it the slowest took {slowest_s:.3f} s"
            )
        return Deadline(
            limits.factor * slowest_s, f"{limits.factor:g} times {slowest_s:.3f} s, of {len(lasted)} like it"
        )

    def _unlearned(self, call: Running, lasted: tuple[float, ...]) -> Deadline:
        """Return a deadline from few durations, or from durations before the last recovery, if any."""
        limits, few = self._limits, f"{len(lasted)} steps of its shape known, fewer than needed"
        least_s = limits.recompiling_s if limits.may_compile else limits.relearning_s
        known = [*lasted, *filter(None, [self._remembered.slowest_s(call)])]
        if known:
            source = f"{few}; the slowest of them and of those before the last recovery took {max(known):.3f} s"
            return Deadline(max(least_s, limits.factor * max(known)), source)
        if (guessed_s := self._remembered.guessed_s(call)) is not None:
            source = f"{few}; by smaller ones before the last recovery it may take {guessed_s:.3f} s"
            return Deadline(min(limits.unlearned_s, max(least_s, limits.factor * guessed_s)), source)
        return Deadline(limits.unlearned_s, few)

    def _floor(self, call: Running) -> tuple[str, float]:
        if not call.phase.in_worker:
            return "turn of an engine core", self._limits.engine_core_floor_s
        if call.shape.is_prefill:
            return "prefill", self._limits.prefill_floor_s
        return "decode", self._limits.decode_floor_s


def quantile(values: deque[float] | tuple[float, ...], q: float) -> float:
    """Return the smallest value that a share `q` of all values does not exceed; of few values the largest."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
