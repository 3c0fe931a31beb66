"""Detection of an engine core that has work and schedules nothing. Pure.

Such a busy loop runs, and so do the ranks: no call takes long, and nothing is late. What shows is that requests could
be in a step, that turn after turn plans none, and that no step is in flight.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from holdfast.core.errors import WorldError
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import PublicText
from holdfast.core.stalls.step_deadlines import Limits


class Planning(msgspec.Struct, frozen=True):
    """Progress of an engine core's scheduling.

    `turns`: calls of the scheduler, `steps`: those that ended with the outputs of requests. `is_idle`: no
    request is in a queue, and the busy loop waits for inputs.
    """

    turns: int
    steps: int
    is_idle: bool = False


class NothingScheduled(WorldError):
    """An engine core has requests that could be in a step, and plans none. KV that requests hold may be the cause."""

    phase = Phase.SCHEDULE_END

    def __init__(self, ready: int, stood_s: float) -> None:
        super().__init__(PublicText(f"{ready} request(s) could run, and no step was planned for {stood_s:.0f} s"))


class StandingDetector:
    """Detector of one engine core."""

    def __init__(self, limits: Limits, period_s: float) -> None:
        self._limits = limits
        self._longest_look_s = 2 * period_s  # a look that comes late is no news of the time before
        self._since = Planning(0, 0)
        self._stood_s = 0.0
        self._observed_at: float | None = None

    def observe(self, now: float, seen: Planning, count_ready: Callable[[], int]) -> NothingScheduled | None:
        """Return the fault once ready requests have waited too long for a step.

        A busy loop that is somewhere else, as in a long call of a client, takes no turns and does not stand.

        Args:
            count_ready: returns how many requests could be in a step; called only where no step has ended since the
                last look.
        """
        elapsed_s = 0.0 if self._observed_at is None else min(now - self._observed_at, self._longest_look_s)
        self._observed_at = now
        ready = count_ready() if seen.steps == self._since.steps else 0
        if not ready:
            self._begin(seen)
            return None
        self._stood_s += elapsed_s
        turns = seen.turns - self._since.turns
        if self._stood_s < self._limits.standing_s or not (seen.is_idle or turns >= self._limits.standing_turns):
            return None
        stood_s = self._stood_s
        self._begin(seen)
        return NothingScheduled(ready, stood_s)

    def _begin(self, seen: Planning) -> None:
        self._since, self._stood_s = seen, 0.0
