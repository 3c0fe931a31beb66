"""Consumers that run beside a decision: each in a thread of its own, fed by a bounded queue that drops and counts."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from holdfast.core.protocol.events import Event, InstanceView

T = TypeVar("T")
Sink = Callable[[Event, InstanceView], None]

CAPACITY = 1000

_elsewhere: dict[str, int] = {}
_all: list[weakref.ref[Beside[Any]]] = []


@dataclass(frozen=True)
class EventSinks:
    """Destinations of an instance's events, opened before any engine core starts.

    `address` is where the PUB socket is bound; `close` closes it.
    """

    address: str = ""
    sinks: Mapping[str, Sink] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


class Beside(Generic[T]):
    """Calls `consume` with every item, in order, in a daemon thread that starts with the first item.

    An item is dropped and counted when `capacity` items wait, or when no thread can be started. Taking an item needs
    no lock, so that a signal handler may do it. A forked child begins with an empty queue and no thread.

    Args:
        due_in_s: seconds until `when_due` is to be called in the thread; None for not before `wake` or the next item.
    """

    def __init__(
        self,
        name: str,
        consume: Callable[[T], None],
        capacity: int = CAPACITY,
        *,
        due_in_s: Callable[[], float | None] = lambda: None,
        when_due: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._consume = consume
        self._capacity = capacity
        self._due_in_s = due_in_s
        self._when_due = when_due
        self.begin_anew()
        _all.append(weakref.ref(self, _all.remove))

    def begin_anew(self) -> None:
        """Forget everything: the process is a forked child, whose parent has the queue and the thread."""
        self.dropped = 0
        self._waiting: SimpleQueue[T | _Mark] = SimpleQueue()
        self._starting = threading.Lock()
        self._runs = False
        self._closed = False

    def put(self, item: T) -> None:
        """Hand over an item, or drop it. Never waits; any thread."""
        if self._closed or self._waiting.qsize() >= self._capacity or not self._start():
            self.dropped += 1
        else:
            self._waiting.put(item)

    def wake(self) -> None:
        """Have the thread look anew at `due_in_s`. Never waits; any thread."""
        if self._start():
            self._waiting.put(_Mark())

    def flush(self, timeout_s: float) -> bool:
        """Wait until all items handed over so far are consumed; return whether they are."""
        if not self._runs or self._closed:
            return self._waiting.empty()
        mark = _Mark()
        self._waiting.put(mark)
        return mark.reached.wait(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Wait for at most `timeout_s` until all items are consumed; drop later ones. Idempotent."""
        self.flush(timeout_s)
        self._closed = True
        self._waiting.put(_Mark(is_last=True))

    def _start(self) -> bool:
        if not self._runs and self._starting.acquire(blocking=False):
            try:
                if not self._runs:
                    threading.Thread(target=self._run, name=f"Beside-{self.name}", daemon=True).start()
                    self._runs = True
            except RuntimeError:  # no thread can be started now; the next item tries again
                return False
            finally:
                self._starting.release()
        return True

    def _run(self) -> None:
        while True:
            try:
                item = self._waiting.get(timeout=self._due_in_s())
            except Empty:
                self._when_due()
                continue
            if isinstance(item, _Mark):
                item.reached.set()
                if item.is_last:
                    return
            else:
                with contextlib.suppress(Exception):  # a consumer tells its own failures
                    self._consume(item)


class _Mark:
    """Item that is reached when all earlier items are consumed."""

    def __init__(self, *, is_last: bool = False) -> None:
        self.is_last = is_last
        self.reached = threading.Event()


def count_dropped(name: str) -> None:
    """Count an item that was dropped outside of a `Beside`."""
    _elsewhere[name] = _elsewhere.get(name, 0) + 1


def dropped_items() -> dict[str, int]:
    """Return how many items each consumer of this process lost, without those that lost none."""
    counts = dict(_elsewhere)
    for beside in _living():
        if beside.dropped:
            counts[beside.name] = counts.get(beside.name, 0) + beside.dropped
    return counts


def _living() -> list[Beside[Any]]:
    return [beside for reference in tuple(_all) if (beside := reference()) is not None]


def _begin_all_anew() -> None:
    _elsewhere.clear()
    for beside in _living():
        beside.begin_anew()


os.register_at_fork(after_in_child=_begin_all_anew)
