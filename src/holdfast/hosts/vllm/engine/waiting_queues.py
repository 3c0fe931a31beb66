"""The two queues in which the host keeps requests that wait: those that hold KV, and all others.

While a pause of the host waits for answers to end, the host schedules only the first. A request whose answer has begun
belongs there even without KV.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.interface import PauseState

_ENDS_BEFORE_PAUSE = "holdfast_ends_before_pause"


def queues(scheduler: Any) -> tuple[Any, Any]:
    """Return both queues."""
    return scheduler.kv_holding_waiting, scheduler.waiting


def remove_from_waiting(scheduler: Any, removed: list[Any]) -> None:
    """Remove requests from both queues."""
    for queue in queues(scheduler):
        queue.remove_requests(removed)
    scheduler.deferred_waiting.difference_update(removed)


def put_first(scheduler: Any, request: Any) -> None:
    """Queue a request without KV first: while a pause of the host waits for answers to end, behind no other queue."""
    remove_from_waiting(scheduler, [request])
    is_paused = scheduler.pause_state is PauseState.PAUSED_NEW
    vars(request)[_ENDS_BEFORE_PAUSE] = is_paused
    (scheduler.kv_holding_waiting if is_paused else scheduler.waiting).prepend_request(request)


def ends_before_pause(scheduler: Any, request: Any) -> bool:
    """Return whether the pause of the host that is under way waits for the end of a request that was put first."""
    return scheduler.pause_state is PauseState.PAUSED_NEW and bool(vars(request).get(_ENDS_BEFORE_PAUSE))
