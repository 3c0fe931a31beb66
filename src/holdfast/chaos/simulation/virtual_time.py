"""A clock that moves only when asked to, and the calls that wait for it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualTime:
    """Calls in the order of their time; those of one time in the order they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self.now + delay_s, next(self._order), call))

    def advance(self) -> None:
        self.now, _, call = heapq.heappop(self._calls)
        call()
