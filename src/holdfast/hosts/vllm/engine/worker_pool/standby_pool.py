"""Keep processes ready to become a lost rank. One thread fills the pool and notices deaths of standbys.

Filling the pool must not slow the instance down: a standby prepares at background CPU priority and returns to the
ordinary priority when it is taken. A standby that dies is replaced after a growing delay.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.connection
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from holdfast.core.faults.redaction import account_of
from holdfast.core.protocol.messages import Standbys
from holdfast.hosts.vllm.engine.worker_pool.spawning import ReplacementProcess
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.lifecycle import describe_exit
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

LOOK_S = 1.0
REFILL_DELAY_S = 2.0  # the recovery that took a standby comes first
LONGEST_PAUSE_S = 60.0

Start = Callable[[int], ReplacementProcess]


@dataclass
class _Standby:
    """A process of the pool and the number of the slot, from 0."""

    replacement: ReplacementProcess
    slot: int
    ready: bool = False


class StandbyPool:
    """Up to `size` standbys. Any thread may take a standby while the pool fills.

    Args:
        start: starts the standby of a slot.
        on_change: called with the state of the pool after each change.
    """

    def __init__(self, size: int, start: Start, on_change: Callable[[Standbys], None]) -> None:
        self._size = size
        self._start = start
        self._on_change = on_change
        self._lock = threading.Lock()
        self._standbys: list[_Standby] = []
        self._fill_at = 0.0
        self._failures = 0
        self._changed = threading.Event()
        self._thread = WatchThread("StandbyPool", self._turn)

    def start(self) -> None:
        if self._size:
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and kill every standby. Bounded."""
        self._thread.close(2 * LOOK_S)
        with self._lock:
            left, self._standbys = self._standbys, []
        for standby in left:
            standby.replacement.kill()

    def take(self, rank: int) -> ReplacementProcess | None:
        """Remove and hurry the standby that is nearest to ready and can become `rank`; None without any."""
        with self._lock:
            fitting = [s for s in self._standbys if s.replacement.rank in (None, rank)]
            alive = [s for s in fitting if s.replacement.process.is_alive()]
            if not alive:
                return None
            taken = max(alive, key=lambda s: (s.ready, s.replacement.rank is not None))
            self._standbys.remove(taken)
            self._fill_at = time.monotonic() + REFILL_DELAY_S
        priority.hurry(taken.replacement.process.pid)
        self._changed.set()
        return taken.replacement

    def report_failure(self, why: str) -> None:
        """Delay the next start: a standby that was taken failed, and the next may fail too."""
        with self._lock:
            self._postpone(why)

    def _turn(self) -> None:
        self._fill()
        if self._look() or self._changed.is_set():
            self._changed.clear()
            self._report()

    def _fill(self) -> None:
        """Start the standby of an empty slot, unless the pool is full or a delay is running."""
        with self._lock:
            taken = {s.slot for s in self._standbys}
            missing = [slot for slot in range(self._size) if slot not in taken]
            if not missing or time.monotonic() < self._fill_at:
                return
        try:
            replacement = self._start(missing[0])
        except Exception as error:  # no process, no memory, no thread left
            self._postpone(f"cannot be started: {account_of(error).message}")
            return
        priority.slow_down(replacement.process.pid)
        with self._lock:
            self._standbys.append(_Standby(replacement, missing[0]))

    def _look(self) -> bool:
        """Wait up to `LOOK_S` for reports and deaths of standbys; return whether the pool has changed."""
        with self._lock:
            standbys = list(self._standbys)
        waiting = {s.replacement.orders: s for s in standbys if not s.ready}
        by_sentinel = {s.replacement.process.sentinel: s for s in standbys}
        found = multiprocessing.connection.wait([*by_sentinel, *filter(None, waiting)], LOOK_S)
        with self._lock:
            changes = [self._update(by_sentinel.get(f) or waiting[f]) for f in found]  # type: ignore[index]
        return any(changes)

    def _update(self, standby: _Standby) -> bool:
        """Mark a standby as ready, or remove a standby that has died; return whether the pool has changed."""
        if standby not in self._standbys:
            return False  # taken meanwhile
        orders = standby.replacement.orders
        assert orders is not None
        with contextlib.suppress(EOFError, OSError):
            if not standby.ready and orders.poll(0):
                orders.recv_bytes()
                standby.ready, self._failures = True, 0
                return True
        self._standbys.remove(standby)
        standby.replacement.kill()
        self._postpone(describe_exit(standby.replacement.process.exitcode))
        return True

    def _postpone(self, why: str) -> None:
        """Exponential backoff before the next start, capped at `LONGEST_PAUSE_S`."""
        self._failures += 1
        pause_s = min(LONGEST_PAUSE_S, 2.0**self._failures)
        self._fill_at = time.monotonic() + pause_s
        logger.warning("a standby is lost (%s); starting another in %.0f s", why, pause_s)

    def _report(self) -> None:
        with self._lock:
            standbys = list(self._standbys)
        memory = sum(_resident_bytes(s.replacement.process.pid) for s in standbys)
        self._on_change(Standbys(wanted=self._size, ready=sum(s.ready for s in standbys), memory_bytes=memory))


def _resident_bytes(pid: int) -> int:
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except (psutil.Error, OSError):
        return 0
    return resident
