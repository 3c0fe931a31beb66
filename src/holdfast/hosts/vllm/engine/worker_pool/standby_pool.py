"""Keeps processes ready that can take a dead rank's place. One thread fills the pool and notices its deaths.

Being filled must not cost the instance its pace: a standby prepares itself at the lowest priority, and gets
the ordinary one when it is needed. A standby that dies is replaced with growing pauses.
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

from holdfast.hosts.vllm.engine.worker_pool.spawning import Newcomer
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.exits import describe_exit

logger = logging.getLogger("holdfast")

LOOK_S = 1.0
REFILL_DELAY_S = 2.0  # what was interrupted comes first
LONGEST_PAUSE_S = 60.0

Start = Callable[[int], Newcomer]


@dataclass(frozen=True)
class PoolState:
    """What people see of a pool. `memory_bytes` is of all its processes, resident."""

    wanted: int
    ready: int
    memory_bytes: int


@dataclass
class _Standby:
    newcomer: Newcomer
    slot: int
    ready: bool = False


class StandbyPool:
    """Up to `size` standbys; `start` makes the one of a slot. `take` may be called while it fills."""

    def __init__(self, size: int, start: Start, on_change: Callable[[PoolState], None]) -> None:
        self._size = size
        self._start = start
        self._on_change = on_change
        self._lock = threading.Lock()
        self._standbys: list[_Standby] = []
        self._fill_at = 0.0
        self._failures = 0
        self._stopped = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="StandbyPool", daemon=True)

    def start(self) -> None:
        if self._size:
            self._thread.start()

    def close(self) -> None:
        """End every standby. Bounded."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2 * LOOK_S)
        with self._lock:
            left, self._standbys = self._standbys, []
        for standby in left:
            standby.newcomer.kill()

    def take(self, rank: int) -> Newcomer | None:
        """The readiest standby that can become `rank`, with the ordinary priority; none where there is none."""
        with self._lock:
            fitting = [s for s in self._standbys if s.newcomer.rank in (None, rank)]
            alive = [s for s in fitting if s.newcomer.process.is_alive()]
            if not alive:
                return None
            taken = max(alive, key=lambda s: (s.ready, s.newcomer.rank is not None))
            self._standbys.remove(taken)
            self._fill_at = time.monotonic() + REFILL_DELAY_S
        priority.hurry(taken.newcomer.process.pid)
        self._news.set()
        return taken.newcomer

    def disappointed(self, why: str) -> None:
        """One that was taken came to nothing; the next one may, too."""
        with self._lock:
            self._postpone(why)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._fill()
            if self._look() or self._news.is_set():
                self._news.clear()
                self._tell()

    def _fill(self) -> None:
        with self._lock:
            taken = {s.slot for s in self._standbys}
            missing = [slot for slot in range(self._size) if slot not in taken]
            if not missing or time.monotonic() < self._fill_at:
                return
        try:
            newcomer = self._start(missing[0])
        except OSError as error:  # no process, no memory: perhaps later
            self._postpone(f"none could be started: {error}")
            return
        priority.slow_down(newcomer.process.pid)
        with self._lock:
            self._standbys.append(_Standby(newcomer, missing[0]))

    def _look(self) -> bool:
        """Wait a moment for news; whether there were any."""
        with self._lock:
            standbys = list(self._standbys)
        waiting = {s.newcomer.orders: s for s in standbys if not s.ready}
        by_sentinel = {s.newcomer.process.sentinel: s for s in standbys}
        found = multiprocessing.connection.wait([*by_sentinel, *filter(None, waiting)], LOOK_S)
        with self._lock:
            news = [self._judge(by_sentinel.get(f) or waiting[f]) for f in found]  # type: ignore[index]
        return any(news)

    def _judge(self, standby: _Standby) -> bool:
        if standby not in self._standbys:
            return False  # taken meanwhile
        orders = standby.newcomer.orders
        assert orders is not None
        with contextlib.suppress(EOFError, OSError):
            if not standby.ready and orders.poll(0):
                orders.recv_bytes()
                standby.ready, self._failures = True, 0
                return True
        self._standbys.remove(standby)
        standby.newcomer.kill()
        self._postpone(describe_exit(standby.newcomer.process.exitcode))
        return True

    def _postpone(self, why: str) -> None:
        self._failures += 1
        pause_s = min(LONGEST_PAUSE_S, 2.0**self._failures)
        self._fill_at = time.monotonic() + pause_s
        logger.warning("a standby is gone (%s); another one is started in %.0f s", why, pause_s)

    def _tell(self) -> None:
        with self._lock:
            standbys = list(self._standbys)
        memory = sum(_resident_bytes(s.newcomer.process.pid) for s in standbys)
        self._on_change(PoolState(self._size, sum(s.ready for s in standbys), memory))


def _resident_bytes(pid: int) -> int:
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0
    return resident
