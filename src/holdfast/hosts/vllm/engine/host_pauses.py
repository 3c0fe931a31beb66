"""Pauses of the host (`/pause`, `/sleep`) and requests that wait after a rewind.

While a pause waits for the end of answers, the host schedules what runs and what holds KV, and freezes the rest of the
queue. A rewound request without KV belongs to the former: its answer has begun. A pause that clears the caches takes
the KV of running requests only, and raises for any other holder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.interface import PauseState

from holdfast.hosts.vllm.engine.rewind import PARKED, release
from holdfast.hosts.vllm.engine.streaming_sessions import keep_parked
from holdfast.hosts.vllm.engine.waiting_queues import ends_before_pause, put_first


def follow_pauses(scheduler: Any) -> None:
    """Let the pauses of a scheduler count rewound requests as begun, and take their KV with that of running ones."""
    set_pause_state: Callable[[Any], None] = scheduler.set_pause_state
    holds_kv_blocks: Callable[[Any], bool] = scheduler._holds_kv_blocks
    reset_prefix_cache: Callable[..., bool] = scheduler.reset_prefix_cache

    def set_and_drain(state: Any) -> None:
        begins = state is PauseState.PAUSED_NEW and scheduler.pause_state is PauseState.UNPAUSED
        set_pause_state(state)
        if begins:
            for request in reversed([r for r in scheduler.waiting if r.num_output_tokens]):
                put_first(scheduler, request)

    def holds_or_ends_before_pause(request: Any) -> bool:
        return holds_kv_blocks(request) or ends_before_pause(scheduler, request)

    def release_and_reset(reset_running_requests: bool = False, *args: Any, **kwargs: Any) -> bool:
        if reset_running_requests:
            _release_waiting(scheduler)
        return reset_prefix_cache(reset_running_requests, *args, **kwargs)

    scheduler.set_pause_state = set_and_drain
    scheduler._holds_kv_blocks = holds_or_ends_before_pause
    scheduler.reset_prefix_cache = release_and_reset


def _release_waiting(scheduler: Any) -> None:
    """Take the KV of every request that waits with some: after a rewind, or between two turns of a session."""
    keep_parked(scheduler, kv_lost=True)
    for request in reversed([r for r in scheduler.kv_holding_waiting if r.status not in PARKED]):
        release(scheduler, request)
        put_first(scheduler, request)
        request.num_computed_tokens = 0
