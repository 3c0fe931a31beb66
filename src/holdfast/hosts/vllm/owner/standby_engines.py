"""Standby engine cores: processes that have imported the host, and wait to replace an engine core.

One thread keeps so many of them ready. A standby prepares in a share of busy processors.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from holdfast.core.faults.redaction import account_of
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.protocol import EngineOrder, encode
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

LOOK_S = 0.5
REFILL_DELAY_S = 5.0  # the replacement that took a standby comes first
LONGEST_PAUSE_S = 60.0


@dataclass
class StandbyEngine:
    """A process, and the pipe over which it says that it is ready and is given its order."""

    process: Any
    orders: Connection
    is_ready: bool = False

    def replace(self, environment: dict[str, str], handshake_address: str) -> None:
        """Have the standby become an engine core. Raises `OSError` when it has ended."""
        priority.hurry(self.process.pid)
        self.orders.send_bytes(encode(EngineOrder(environment, handshake_address)))
        self.orders.close()

    def kill(self) -> None:
        self.process.kill()
        self.orders.close()
        self.process.join()


class StandbyEngines:
    """The standby engine cores of an instance. Any thread may take one.

    Args:
        start: starts a standby.
    """

    def __init__(self, size: int, start: Callable[[], StandbyEngine]) -> None:
        self._size = size
        self._start = start
        self._lock = threading.Lock()
        self._standbys: list[StandbyEngine] = []
        self._fill_at = 0.0
        self._failures = 0
        self._is_closed = False
        self._thread = WatchThread("StandbyEngines", self.look, LOOK_S)

    def start(self) -> None:
        if self._size:
            self._thread.start()

    def close(self) -> None:
        """End every standby. Idempotent."""
        self._thread.close()
        with self._lock:
            self._is_closed = True
            left, self._standbys = self._standbys, []
        for standby in left:
            standby.kill()

    def take(self) -> StandbyEngine | None:
        """Remove a standby that is ready; None without any."""
        with self._lock:
            self._fill_at = max(self._fill_at, time.monotonic() + REFILL_DELAY_S)
            ready = [s for s in self._standbys if s.is_ready and s.process.is_alive()]
            if not ready:
                return None
            self._standbys.remove(ready[0])
        return ready[0]

    def look(self) -> None:
        """Note which standbys are ready, forget dead ones, and start one that is missing."""
        with self._lock:
            for standby in list(self._standbys):
                self._look_at(standby)
            is_due = len(self._standbys) < self._size and time.monotonic() >= self._fill_at
        if is_due:
            self._fill()

    def _look_at(self, standby: StandbyEngine) -> None:
        if not standby.process.is_alive():
            self._standbys.remove(standby)
            standby.kill()
            self._postpone("it has ended")
            return
        with contextlib.suppress(EOFError, OSError):
            if not standby.is_ready and standby.orders.poll(0):
                standby.orders.recv_bytes()
                standby.is_ready, self._failures = True, 0
                logger.info("a standby engine core is ready (pid %d)", standby.process.pid)

    def _fill(self) -> None:
        try:
            standby = self._start()
        except Exception as error:  # no process, no memory, no thread left
            self._postpone(f"it cannot be started: {account_of(error).message}")
            return
        with self._lock:
            if not self._is_closed:
                self._standbys.append(standby)
                return
        standby.kill()

    def _postpone(self, why: str) -> None:
        self._failures += 1
        pause_s = min(LONGEST_PAUSE_S, 2.0**self._failures)
        self._fill_at = time.monotonic() + pause_s
        logger.warning("a standby engine core is lost (%s); starting another in %.0f s", why, pause_s)
