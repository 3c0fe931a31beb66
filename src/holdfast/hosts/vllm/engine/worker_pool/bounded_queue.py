"""Calls to workers end when a worker is gone: the ring that carries them is short, and a dead reader frees nothing."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

LOOK_S = 0.1


def bounded(queue: Any, has_failed: Callable[[], bool]) -> Any:
    """`queue`, whose `enqueue` raises as the host's executor does once `has_failed`, instead of waiting for ever.

    Costs nothing while there is room: a bound is looked at only by a writer that waits.
    """
    enqueue = functools.partial(type(queue).enqueue, weakref.proxy(queue))

    def enqueue_bounded(call: Any, timeout: float | None = None) -> None:
        if timeout is not None:
            return enqueue(call, timeout)
        while True:
            try:
                return enqueue(call, LOOK_S)
            except TimeoutError:
                if has_failed():
                    raise RuntimeError("Executor failed.") from None

    queue.enqueue = enqueue_bounded
    return queue
