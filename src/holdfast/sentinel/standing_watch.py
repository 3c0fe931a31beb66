"""Watch of an engine core that has work and schedules nothing: looks from the sentinel's thread, ends the busy loop."""

from __future__ import annotations

from holdfast.core.ports import EngineHost
from holdfast.core.stalls.standing import NothingScheduled, StandingDetector
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.sentinel.stall_watch import PERIOD_S


class StandingWatch:
    """Watch of one engine core. A look reads a few attributes of a process that is its own, and waits for nothing."""

    def __init__(self, host: EngineHost, limits: Limits) -> None:
        self._host = host
        self._detector = StandingDetector(limits, PERIOD_S)
        self._found: NothingScheduled | None = None

    def look(self, now: float, *, is_running: bool) -> None:
        """Look once, and interrupt a busy loop that stands. The sentinel's thread."""
        count_ready = self._host.ready_requests if is_running else lambda: 0
        found = self._detector.observe(now, self._host.planning(), count_ready)
        if found is not None:
            self._found = found
            self._host.interrupt()

    def cause_of(self, error: Exception) -> Exception:
        """Return what ended the busy loop: `NothingScheduled` where this watch interrupted it. Busy loop's thread."""
        found, self._found = self._found, None
        return found if found is not None and self._host.is_interrupt(error) else error
