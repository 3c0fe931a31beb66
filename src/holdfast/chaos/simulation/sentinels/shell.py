"""The shipped sentinels on virtual time: what their modules import of clocks, threads and processes is replaced."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

from holdfast.chaos.simulation.sentinels.scheduler import (
    Process,
    Scheduler,
    VirtualCondition,
    VirtualEvent,
    VirtualQueue,
)
from holdfast.core.engine_core import state as engine_core_state
from holdfast.core.instance import group
from holdfast.sentinel import client, engine, front_end_link, incident_files, link_registry, quarantine, worker
from holdfast.wire import Delivery

MODULES: tuple[ModuleType, ...] = (client, engine, front_end_link, incident_files, quarantine, worker)


class VirtualThread:
    """Twin of `SentinelThread`: turns are calls of the scheduler."""

    scheduler: Scheduler  # of the run under way
    on_error: Callable[[str, Exception], None]
    after_turn: Callable[[Process], None]

    def __init__(
        self,
        name: str,
        station: Any,
        on_delivery: Callable[[Delivery], None],
        on_tick: Callable[[], None] = lambda: None,
        tick_s: Callable[[], float] = lambda: 5.0,
    ) -> None:
        self._name, self._station = name, station
        self._on_delivery, self._on_tick, self._tick_s = on_delivery, on_tick, tick_s
        self._posted: list[Callable[[], None]] = []
        self._process: Process = VirtualThread.scheduler.running
        self._runs = False
        self._tick_number = itertools.count()
        self._newest_tick = -1
        station.on_arrival = self._wake

    def start(self) -> None:
        self._runs = True
        self._wake()

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        self._wake()

    def close(self, timeout_s: float = 2.0) -> None:
        self._runs = False

    def _wake(self) -> None:
        if self._runs:
            self.scheduler.after(0.0002, self._turn, self._process)

    def _turn(self) -> None:
        if not self._runs:
            return
        posted, self._posted = self._posted, []
        for call in posted:
            self._guarded(call)
        delivery = self._station.receive(0.0)
        if delivery is not None:
            self._guarded(lambda: self._on_delivery(delivery))
        self._guarded(self._on_tick)
        VirtualThread.after_turn(self._process)
        self._schedule_tick()

    def _schedule_tick(self) -> None:
        self._newest_tick = number = next(self._tick_number)
        self.scheduler.after(max(0.001, self._tick_s()), lambda: self._tick(number), self._process)

    def _tick(self, number: int) -> None:
        if number == self._newest_tick:
            self._turn()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            VirtualThread.on_error(self._name, error)


class VirtualBeside:
    """Twin of `Beside`: items are consumed by calls of a process of their own, which may fail or block."""

    def __init__(self, name: str, consume: Callable[[Any], None], capacity: int = 1000) -> None:
        self.name, self._consume, self.dropped = name, consume, 0
        self._process = Process(f"beside-{name}", VirtualThread.scheduler.running.pid)

    def put(self, item: Any) -> None:
        VirtualThread.scheduler.after(0.0001, lambda: self._take(item), self._process)

    def _take(self, item: Any) -> None:
        with contextlib.suppress(Exception):
            self._consume(item)

    def flush(self, timeout_s: float) -> bool:
        return True

    def close(self, timeout_s: float) -> None:
        self._process.is_gone = True


SMALL_BOUNDS: tuple[tuple[ModuleType, str, int], ...] = (
    (engine_core_state, "MAX_ARMED", 2),
    (group, "MAX_POISONS", 2),
    (incident_files, "MAX_STALLS", 2),
    (link_registry, "EVENTS_PER_MESSAGE", 3),
)
SHORT_HISTORY: tuple[tuple[ModuleType, str, int], ...] = (
    (client, "MAX_HISTORY", 25),
    (front_end_link, "MAX_HISTORY", 25),
)


@contextlib.contextmanager
def small_bounds(has_short_history: bool) -> Iterator[None]:
    """Reach the bounds of what is kept within a run."""
    originals = []
    for module, name, bound in (*SMALL_BOUNDS, *(SHORT_HISTORY if has_short_history else ())):
        originals.append((module, name, getattr(module, name)))
        setattr(module, name, bound)
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _shims(scheduler: Scheduler) -> dict[str, Any]:
    """Return the replacements by the name under which a module imports the original."""
    clock = SimpleNamespace(
        monotonic=lambda: scheduler.now,
        time=lambda: scheduler.wall_offset_s + scheduler.now,
        strftime=time.strftime,
        gmtime=lambda seconds=None: time.gmtime(scheduler.wall_offset_s + scheduler.now),
        sleep=scheduler.sleep,
    )
    threads = SimpleNamespace(
        Condition=lambda: VirtualCondition(scheduler),
        Event=lambda: VirtualEvent(scheduler),
        Lock=threading.Lock,
        Thread=threading.Thread,
        current_thread=threading.current_thread,
        get_ident=threading.get_ident,
    )
    files = SimpleNamespace(**{name: getattr(os, name) for name in ("path", "environ", "kill", "close")})
    files.getpid = lambda: scheduler.running.pid
    return {
        "time": clock,
        "threading": threads,
        "os": files,
        "queue": SimpleNamespace(SimpleQueue=lambda: VirtualQueue(scheduler), Empty=queue.Empty),
        "SimpleQueue": lambda: VirtualQueue(scheduler),
        "SentinelThread": VirtualThread,
        "ask_for_stacks": lambda folder, ranks: {},
        "forget_stacks": lambda folder, pid: None,
        "Beside": VirtualBeside,
    }


@contextlib.contextmanager
def on_virtual_time(
    scheduler: Scheduler, on_error: Callable[[str, Exception], None], after_turn: Callable[[Process], None]
) -> Iterator[None]:
    """Let the sentinels that are made and run in this context live on the scheduler's time."""
    VirtualThread.scheduler, VirtualThread.on_error, VirtualThread.after_turn = scheduler, on_error, after_turn
    shims, originals = _shims(scheduler), []
    for module in MODULES:
        for name, shim in shims.items():
            if hasattr(module, name):
                originals.append((module, name, getattr(module, name)))
                setattr(module, name, shim)
    try:
        yield
    finally:
        for module, name, original in originals:
            setattr(module, name, original)
