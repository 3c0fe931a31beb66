"""Requests that let go of their blocks while a step of theirs was in flight.

Blocks enter the prefix cache when they are scheduled. A request that is aborted, finished or preempted
before its step has ended leaves blocks there that may never be written, and only it knew which: so what
it held is remembered until its steps must have ended. Runs once per such request, never per step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from holdfast.core.requests.rewind import HeldRequest


class DepartedRequests:
    """Remembers, within the depth of the pipeline, who left while in flight and with which blocks."""

    def __init__(self, scheduler: Any, steps_in_flight: int) -> None:
        self._scheduler = scheduler
        self._depth = steps_in_flight
        self._left: deque[tuple[int, HeldRequest]] = deque()
        self._free: Callable[[Any], None] = scheduler._free_request_blocks
        scheduler._free_request_blocks = self._remember_and_free

    def in_flight(self) -> list[HeldRequest]:
        """Who left during the steps that may still be in flight."""
        self._forget()
        return [held for _, held in self._left]

    def clear(self) -> None:
        """Nothing is in flight any more."""
        self._left.clear()

    def _remember_and_free(self, request: Any) -> None:
        if request.num_in_flight_tokens:
            self._forget()
            self._left.append((self._scheduler.current_step, self._held(request)))
        self._free(request)

    def _held(self, request: Any) -> HeldRequest:
        groups = self._scheduler.kv_cache_manager.get_block_ids(request.request_id)
        return HeldRequest(
            request_id=f"departed {request.request_id}",
            total=request.num_tokens,
            computed=request.num_computed_tokens,
            in_flight=request.num_in_flight_tokens,
            blocks=groups[0],
        )

    def _forget(self) -> None:
        oldest = self._scheduler.current_step - self._depth
        while self._left and self._left[0][0] < oldest:
            self._left.popleft()
