"""Count of requests that the host's scheduler could put into a step, and of its turns. Any thread.

The reasons for which the host rightly plans no step, each by its name:

- a step is in flight, or blocks return only with one;
- a pause by a caller, a sleep, an update of weights: the scheduler is not unpaused, or the executor sleeps;
- a request waits for its grammar, for KV from elsewhere, or for more input of its session;
- a session or a transfer holds KV or a slot meanwhile: others may wait for that;
- a KV or encoder connector has not answered for a request: the scheduler has deferred the request;
- Holdfast itself keeps a suspect waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from holdfast.core.stalls.standing import Planning

_READY = frozenset({RequestStatus.WAITING, RequestStatus.PREEMPTED, RequestStatus.RUNNING})
_HOLDS_FOR_OUTSIDE = frozenset({RequestStatus.WAITING_FOR_REMOTE_KVS, RequestStatus.WAITING_FOR_STREAMING_REQ})


class ReadyRequests:
    """The requests of an engine core, seen from another thread: single reads, each of them whole, and no calls.

    Args:
        may_run: tells whether Holdfast lets a request be scheduled.
    """

    def __init__(self, engine: Any, may_run: Callable[[Any], bool]) -> None:
        self._engine = engine
        self._scheduler = engine.scheduler
        self._may_run = may_run

    def planning(self, steps: int) -> Planning:
        """Return the scheduler's turns beside the steps that ended."""
        scheduler = self._scheduler
        queued = scheduler.running or scheduler.waiting or scheduler.kv_holding_waiting
        return Planning(scheduler.current_step, steps, is_idle=not queued)

    def count(self) -> int:
        """Return how many requests could be in a step; 0 where the host has a reason to plan none."""
        scheduler = self._scheduler
        if scheduler.pause_state is not PauseState.UNPAUSED or self._engine.model_executor.is_sleeping:
            return 0
        try:
            requests = list(scheduler.requests.values())
        except RuntimeError:  # requests come and go: the busy loop does something
            return 0
        if scheduler.deferred_frees or any(map(_may_hold_others_back, requests)):
            return 0
        return sum(self._is_ready(request) for request in requests)

    def _is_ready(self, request: Any) -> bool:
        if request.status not in _READY or not self._may_run(request):
            return False
        has_connector = self._scheduler.connector is not None or self._scheduler.ec_connector is not None
        return not (has_connector and request in self._scheduler.deferred_waiting)


def _may_hold_others_back(request: Any) -> bool:
    """Tell whether a request has a step in flight, or holds KV until something happens outside of the scheduler."""
    return request.num_in_flight_tokens > 0 or request.status in _HOLDS_FOR_OUTSIDE or request.is_finished()
