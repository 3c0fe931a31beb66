"""A virtual clock, and the calls that wait for their time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualTime:
    """Clock that moves from call to call. Calls of the same time run in the order of their scheduling."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self.now + delay_s, next(self._order), call))

    def advance(self) -> None:
        self.now, _, call = heapq.heappop(self._calls)
        call()

    def advance_until(self, now: float) -> None:
        """Run every call that is due, and move the clock to `now`."""
        while self._calls and self._calls[0][0] <= now:
            self.advance()
        self.now = max(self.now, now)
