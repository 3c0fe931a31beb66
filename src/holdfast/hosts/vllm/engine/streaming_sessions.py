"""Streaming sessions in an engine core: requests whose input arrives in turns, and that are parked between two turns.

The host keeps the KV of a parked session, and takes the number of computed tokens for what the next turn continues. A
session whose KV is lost stays parked, with that number and without blocks; its next turn begins at the first token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.request import RequestStatus

from holdfast.hosts.vllm.protocol import drawn_before, set_drawn_before

_ADDED = "holdfast_added"
_LAST_TURN_ENDED = "holdfast_last_turn_ended"


def follow_sessions(scheduler: Any) -> None:
    """Follow the turns of a scheduler's sessions: at the admission of an input, and as a turn begins."""
    begin_turn: Callable[[Any, Any], None] = scheduler._update_request_as_session
    end_turn: Callable[[Any], bool] = scheduler._handle_stopped_request
    add: Callable[[Any], None] = scheduler.add_request

    def begin_turn_from_blocks(session: Any, update: Any) -> None:
        drawn = drawn_before(session) + session.num_output_tokens
        begin_turn(session, update)
        set_drawn_before(session, drawn)
        if not any(scheduler.kv_cache_manager.get_block_ids(session.request_id)):
            session.num_computed_tokens = 0

    def end_turn_and_mark(request: Any) -> bool:
        has_finished = end_turn(request)
        if has_finished and request.resumable:
            vars(request)[_LAST_TURN_ENDED] = True
        return has_finished

    def add_and_mark(request: Any) -> None:
        add(request)
        vars(request)[_ADDED] = True

    scheduler._update_request_as_session = begin_turn_from_blocks
    scheduler._handle_stopped_request = end_turn_and_mark
    scheduler.add_request = add_and_mark


def was_added(request: Any) -> bool:
    """Return whether the scheduler has taken a request, or an input of a session."""
    return _ADDED in vars(request)


def is_parked(request: Any) -> bool:
    """Return whether a request is a session between two turns."""
    return bool(request.status is RequestStatus.WAITING_FOR_STREAMING_REQ)


def has_moved_on(request: Any) -> bool:
    """Return whether a session of a step under way is behind the end of its turn: parked, or in the next turn."""
    begins = request.status is RequestStatus.WAITING and request.resumable and not request.num_output_tokens
    return is_parked(request) or (begins and drawn_before(request) > 0)


def take_back_last_turn(request: Any) -> bool:
    """Let the last turn of a session end once more; return whether it had ended and the session was not freed."""
    if not vars(request).pop(_LAST_TURN_ENDED, False):
        return False
    request.streaming_queue.appendleft(None)  # the host's mark of the end, which the host has taken
    return True


def keep_parked(scheduler: Any, *, kv_lost: bool) -> None:
    """Leave every session between two turns parked, in one queue; release the blocks of all when KV is lost."""
    parked = [r for r in scheduler.requests.values() if is_parked(r)]
    queued = {r.request_id for queue in (scheduler.kv_holding_waiting, scheduler.waiting) for r in queue}
    if parked:
        scheduler.running = [r for r in scheduler.running if not is_parked(r)]
    for session in parked:
        if kv_lost:
            scheduler.kv_cache_manager.free(session)
            scheduler.encoder_cache_manager.free(session)
        if session.request_id not in queued:
            scheduler._enqueue_waiting_request(session)
    scheduler.num_waiting_for_streaming_input = len(parked)
