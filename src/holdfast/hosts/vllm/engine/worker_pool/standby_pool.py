"""Keep processes ready to become a lost rank. One thread fills the pool and notices deaths of standbys.

A standby prepares in a share of the processors, so that it is ready in bounded time beside full load, and has ordinary
priority once it is taken. The pool is not filled during a recovery. A standby that dies is replaced after a growing
delay.
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
from holdfast.hosts.vllm.engine.worker_pool.standby_parent import StandbyParent
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.lifecycle import describe_exit
from holdfast.hosts.vllm.worker.standby import DEVICE_FULL
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

LOOK_S = 1.0
REFILL_DELAY_S = 2.0  # the recovery that took a standby comes first
LONGEST_PAUSE_S = 60.0
LONGEST_START_S = 3600.0  # a share of a processor loads large weights slowly
MAX_PROBLEM_CHARS = 200

Start = Callable[[int], ReplacementProcess]


@dataclass
class _Standby:
    """A process of the pool and the number of the slot, from 0."""

    replacement: ReplacementProcess
    slot: int
    started: float
    ready: bool = False


class StandbyPool:
    """Up to `size` standbys. Any thread may take a standby while the pool fills.

    Args:
        start: starts the standby of a slot.
        on_change: called with the state of the pool after each change.
        parent: of the standbys; None where every standby is a new interpreter.
    """

    def __init__(
        self, size: int, start: Start, on_change: Callable[[Standbys], None], parent: StandbyParent | None = None
    ) -> None:
        self._parent = parent
        self._size = size
        self._start = start
        self._on_change = on_change
        self._lock = threading.Lock()
        self._standbys: list[_Standby] = []
        self._fill_at = 0.0
        self._failures = 0
        self._plain: set[int] = set()  # slots whose weights did not fit on the device
        self._problem = ""
        self._last_start_s = 0.0
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
        if self._parent is not None:
            self._parent.close()
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

    def is_plain(self, slot: int) -> bool:
        """Return whether the standby of a slot waits without weights, because they did not fit on the device."""
        return slot in self._plain

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
            if not missing or time.monotonic() < self._fill_at or priority.is_held():
                return
        if self._parent is not None and not self._parent.prepare():
            return
        try:
            replacement = self._start(missing[0])
        except Exception as error:  # no process, no memory, no thread left
            self._postpone(f"cannot be started: {account_of(error).message}")
            return
        with self._lock:
            self._standbys.append(_Standby(replacement, missing[0], time.monotonic()))
        self._changed.set()

    def _look(self) -> bool:
        """Wait up to `LOOK_S` for reports and deaths of standbys; return whether the pool has changed."""
        with self._lock:
            standbys = list(self._standbys)
        waiting = {s.replacement.orders: s for s in standbys if not s.ready}
        by_sentinel = {s.replacement.process.sentinel: s for s in standbys}
        found = multiprocessing.connection.wait([*by_sentinel, *filter(None, waiting)], LOOK_S)
        with self._lock:
            changes = [self._update(by_sentinel.get(f) or waiting[f]) for f in found]  # type: ignore[index]
            late = [s for s in self._standbys if not s.ready and time.monotonic() > s.started + LONGEST_START_S]
        for standby in late:
            logger.warning("a standby was not ready after %.0f s and is killed", LONGEST_START_S)
            standby.replacement.process.kill()
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
                standby.ready, self._failures, self._problem = True, 0, ""
                self._last_start_s = time.monotonic() - standby.started
                if self._parent is not None:
                    self._parent.note_success()
                return True
        self._standbys.remove(standby)
        standby.replacement.kill()
        if not standby.ready and standby.replacement.process.exitcode == DEVICE_FULL:
            self._plain.add(standby.slot)
            logger.warning("standby %d waits without weights from now on: the device is full", standby.slot)
            return True
        if self._parent is not None and not standby.ready and (standby.replacement.process.exitcode or 0) > 0:
            self._parent.note_failure()
        self._postpone(describe_exit(standby.replacement.process.exitcode))
        return True

    def _postpone(self, why: str) -> None:
        """Exponential backoff before the next start, capped at `LONGEST_PAUSE_S`."""
        self._failures += 1
        self._problem = why[:MAX_PROBLEM_CHARS]
        self._changed.set()
        pause_s = min(LONGEST_PAUSE_S, 2.0**self._failures)
        self._fill_at = time.monotonic() + pause_s
        logger.warning("a standby is lost (%s); starting another in %.0f s", why, pause_s)

    def _report(self) -> None:
        with self._lock:
            standbys = list(self._standbys)
        memory = sum(_resident_bytes(s.replacement.process.pid) for s in standbys)
        ready = sum(s.ready for s in standbys)
        state = Standbys(
            wanted=self._size,
            ready=ready,
            memory_bytes=memory,
            starting=len(standbys) - ready,
            failures=self._failures,
            problem=self._problem or ("the device is full: weights are loaded when needed" if self._plain else ""),
            without_weights=len(self._plain),
            forked=self._parent is not None and self._parent.server is not None,
            last_start_s=round(self._last_start_s, 1),
        )
        self._on_change(state)


def _resident_bytes(pid: int) -> int:
    try:
        resident: int = psutil.Process(pid).memory_info().rss
    except (psutil.Error, OSError):
        return 0
    return resident
