"""A scheduler of virtual processes: one thing runs at a time, in the order of a virtual clock.

The loop of a sentinel runs as calls of the scheduler. Code that blocks (the busy loop of an engine core) runs in a
fiber: a thread that runs only while the scheduler waits for the fiber. A run is therefore the same each time.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty
from typing import Any

POLL_S = 0.02  # how often a virtual wait looks at its condition


class ProcessEnded(BaseException):
    """Raised in a fiber whose process has ended; no code of the process may catch the exception."""


class Process:
    """A virtual process. Calls of a process that has ended are dropped; calls of a frozen process wait."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.is_gone = False
        self.busy_until = 0.0  # frozen, or blocked in an effect
        self.fibers: list[Fiber] = []
        self.on_end: list[Callable[[], None]] = []


class Scheduler:
    """Virtual time, and the calls that wait for their time. Calls of the same time run in order of scheduling."""

    def __init__(self) -> None:
        self.now = 0.0
        self.wall_offset_s = 1_700_000_000.0
        self._order = itertools.count()
        self._calls: list[tuple[float, int, Process, Callable[[], None]]] = []
        self.world = Process("world", 0)
        self.running = self.world
        self.fiber: Fiber | None = None
        self.steps = 0

    def after(self, delay_s: float, call: Callable[[], None], process: Process | None = None) -> None:
        """Run a call of a process after a delay, unless the process has ended by then."""
        heapq.heappush(self._calls, (self.now + delay_s, next(self._order), process or self.world, call))

    def advance(self) -> None:
        """Run the next call."""
        at, _, process, call = heapq.heappop(self._calls)
        self.now = max(self.now, at)
        if process.is_gone:
            return
        if process.busy_until > self.now:
            self.after(process.busy_until - self.now, call, process)
            return
        self.steps += 1
        self.running = process
        try:
            call()
        finally:
            self.running = self.world

    # ---- processes

    def start_fiber(self, process: Process, main: Callable[[], None]) -> None:
        """Run the main thread of a process, which may block, from now on."""
        fiber = Fiber(self, process, main)
        process.fibers.append(fiber)
        self.after(0.0, fiber.resume, process)

    def end(self, process: Process) -> None:
        """End a process, whatever the process is doing."""
        if process.is_gone:
            return
        process.is_gone = True
        for call in process.on_end:
            call()
        for fiber in process.fibers:
            fiber.unwind()

    def freeze(self, process: Process, seconds: float) -> None:
        """Let a process do nothing for a while."""
        process.busy_until = max(process.busy_until, self.now + seconds)

    # ---- waits of a fiber

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass in a fiber; a caller outside of fibers blocks the whole process."""
        if self.fiber is None:
            self.freeze(self.running, seconds)
            return
        self.fiber.sleep(seconds)

    def wait_for(self, holds: Callable[[], Any], timeout_s: float | None) -> bool:
        """Wait in a fiber until a condition holds; outside of fibers return the present value."""
        deadline = float("inf") if timeout_s is None else self.now + timeout_s
        while not (held := bool(holds())) and self.fiber is not None and self.now < deadline:
            self.fiber.sleep(min(POLL_S, max(0.0001, deadline - self.now)))
        return held


class Fiber:
    """A thread of a virtual process that runs only while the scheduler waits for the thread."""

    def __init__(self, scheduler: Scheduler, process: Process, main: Callable[[], None]) -> None:
        self._scheduler, self._process, self._main = scheduler, process, main
        self._go, self._back = threading.Lock(), threading.Lock()  # taken: nobody may run
        self._go.acquire()
        self._back.acquire()
        self._error: BaseException | None = None
        self._is_done = self._unwinds = self._started = False
        self._thread = threading.Thread(target=self._run, name=process.name, daemon=True)

    def resume(self) -> None:
        """Run the thread until the thread sleeps or ends; raise what the thread raised."""
        if self._is_done:
            return
        scheduler, before = self._scheduler, self._scheduler.fiber
        scheduler.fiber = self
        if not self._started:
            self._started = True
            self._thread.start()
        self._go.release()
        self._back.acquire()
        scheduler.fiber = before
        error, self._error = self._error, None
        if error is not None:
            raise error

    def unwind(self) -> None:
        """End the thread, unless the thread itself ends the process: then at the next sleep."""
        self._unwinds = True
        if self._started and not self._is_done and self._scheduler.fiber is not self:
            self.resume()

    def sleep(self, seconds: float) -> None:
        if self._unwinds:
            raise ProcessEnded
        self._scheduler.after(seconds, self.resume, self._process)
        self._back.release()
        self._go.acquire()
        if self._unwinds:
            raise ProcessEnded

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._unwinds:
                self._main()
        except ProcessEnded:
            pass
        except BaseException as error:
            self._error = error
        self._is_done = True
        self._back.release()


class VirtualCondition:
    """Twin of `threading.Condition`: only one thing runs at a time, so a lock is not needed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __enter__(self) -> VirtualCondition:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def notify(self) -> None:
        pass

    def notify_all(self) -> None:
        pass

    def wait_for(self, holds: Callable[[], Any], timeout: float | None = None) -> bool:
        return self._scheduler.wait_for(holds, timeout)


class VirtualEvent:
    """Twin of `threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler, self._is_set = scheduler, False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        return self._scheduler.wait_for(lambda: self._is_set, timeout)


class VirtualQueue:
    """Twin of `queue.SimpleQueue`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def empty(self) -> bool:
        return not self._items

    def get_nowait(self) -> Any:
        if not self._items:
            raise Empty
        return self._items.popleft()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._scheduler.wait_for(lambda: self._items, timeout):
            raise Empty
        return self._items.popleft()
