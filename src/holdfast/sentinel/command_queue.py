"""What a client orders a busy loop that stands to do: put by the sentinel's thread, waited for by the busy loop's."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from holdfast.core.protocol import messages as m

REANNOUNCE_S = 2.0
_POLL_S = 0.2

Order = m.RecoverEngine | m.EndEngine


class CommandQueue:
    """Every wait is bounded by `bound_s` of silence: a client that is gone says nothing any more."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._waiting: SimpleQueue[Order] = SimpleQueue()
        self._heard_at = 0.0

    def heard(self) -> None:
        """The client still lives. Any thread."""
        self._heard_at = time.monotonic()

    def put(self, order: Order) -> None:
        self._waiting.put(order)

    def wait(self, announce: Callable[[], None], epoch: int, is_running: Callable[[], bool]) -> Order:
        """The next order that is news in `epoch`. Raises `SystemExit` in an orderly shutdown."""
        self.heard()
        while time.monotonic() - self._heard_at < self._bound_s:
            # Said again every so often: what was heard the first time changes nothing the second time.
            announce()
            if (order := self._next(epoch, is_running)) is not None:
                return order
        return m.EndEngine(command_id="", reason=f"nothing was heard for {self._bound_s:g} s")

    def _next(self, epoch: int, is_running: Callable[[], bool]) -> Order | None:
        until = time.monotonic() + REANNOUNCE_S
        while time.monotonic() < until:
            try:
                order = self._waiting.get(timeout=_POLL_S)
            except Empty:
                if not is_running():
                    raise SystemExit from None
                continue
            if isinstance(order, m.EndEngine) or order.epoch > epoch:
                return order
        return None
