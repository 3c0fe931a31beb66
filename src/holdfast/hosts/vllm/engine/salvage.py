"""Salvage the outputs of a step that were processed but never sent.

The host processes a batch request by request and sends the outputs at the end. After an exception in between, tokens
have been appended to requests whose outputs exist only in the local variables of the traceback's frames. Each output
is either sent now or undone.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from holdfast.hosts.vllm.engine.streaming_sessions import has_moved_on, take_back_last_turn

_SCHEDULER_MODULE = "vllm.v1.core.sched.scheduler"
_ENGINE_MODULE = "vllm.v1.engine.core"
_STEPS = ("step", "step_with_batch_queue")

Input = tuple[Any, Any]  # type and content of a message of a client


def salvage(engine: Any, error: Exception) -> int:
    """Send the outputs that were processed, undo the output that was half processed; return the number sent."""
    step = _frame(error, _ENGINE_MODULE, _STEPS)
    if step is None:
        return 0
    update = _frame(error, _SCHEDULER_MODULE, ("update_from_output",))
    if update is not None:
        return _salvage_partial(engine, update.f_locals)
    return _send(engine, step.f_locals.get("engine_core_outputs") or {})


def input_under_way(error: Exception) -> Input | None:
    """Return the input of a client that was being handled as the error was raised, and is in no queue any more."""
    frame = _frame(error, _ENGINE_MODULE, ("_handle_client_request",))
    return None if frame is None else (frame.f_locals["request_type"], frame.f_locals["request"])


def drop_unknown(scheduler: Any) -> None:
    """Remove requests from the queues that the scheduler does not know, or not any more.

    The host forgets finished requests before the queues do, and queues a new request before the request is known.
    """
    scheduler.running = [r for r in scheduler.running if r.request_id in scheduler.requests]
    for queue in (scheduler.waiting, scheduler.kv_holding_waiting):
        if unknown := [r for r in queue if r.request_id not in scheduler.requests]:
            queue.remove_requests(unknown)


def _frame(error: Exception, module: str, names: tuple[str, ...]) -> FrameType | None:
    for frame in _frames(error):
        if frame.f_code.co_name in names and frame.f_globals.get("__name__") == module:
            return frame
    return None


def _frames(error: Exception) -> Iterator[FrameType]:
    return (frame for frame, _ in traceback.walk_tb(error.__traceback__))


def _send(engine: Any, outputs: dict[int, Any]) -> int:
    for output in outputs.items():
        engine.output_queue.put_nowait(output)
    return sum(len(o.outputs) for o in outputs.values())


def _salvage_partial(engine: Any, found: dict[str, Any]) -> int:
    """Salvage after an exception in the middle of a batch's outputs.

    Args:
        found: local variables of the host's `update_from_output`.
    """
    outputs = {client: list(outs) for client, outs in (found.get("outputs") or {}).items()}
    interrupted = found.get("request")
    if interrupted is not None and not _has_output(interrupted.request_id, outputs):
        if interrupted.request_id in engine.scheduler.requests and not has_moved_on(interrupted):
            _undo(engine.scheduler, interrupted, _delivered_by_end(found, interrupted))
        else:
            is_finished = interrupted.request_id not in engine.scheduler.requests
            reason = interrupted.get_finished_reason() if is_finished else found["finish_reason"]
            outputs.setdefault(interrupted.client_index, []).append(_last_output(interrupted, found, reason))
    drop_unknown(engine.scheduler)
    return _send(engine, {client: EngineCoreOutputs(outputs=outs) for client, outs in outputs.items()})


def _has_output(request_id: str, outputs: dict[int, list[Any]]) -> bool:
    return any(o.request_id == request_id for outs in outputs.values() for o in outs)


def _last_output(request: Any, found: dict[str, Any], reason: Any) -> Any:
    """Build the output of a request that finished, or of a session whose turn ended, in the host's place."""
    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=found.get("new_token_ids") or [],
        finish_reason=reason,
        stop_reason=request.stop_reason,
        new_logprobs=found.get("new_logprobs"),
    )


def _delivered_by_end(found: dict[str, Any], request: Any) -> int:
    """Return the number of delivered tokens, also of a session whose last turn has just ended."""
    if take_back_last_turn(request):  # the host has changed the counts
        return int(request.num_output_tokens) - len(found["new_token_ids"])
    return _delivered(found, request)


def _delivered(found: dict[str, Any], request: Any) -> int:
    """Return the number of output tokens that steps before the interrupted step have delivered.

    As a step is scheduled, the host counts the tokens of steps in flight as output, drafts included. Steps are
    processed in order, so those tokens have been delivered by now, except for drafts that were rejected meanwhile. The
    host has taken rejected drafts off `num_computed_tokens`, maybe those of the interrupted step as well. Where the
    host has not, no token of the interrupted step was appended either.

    A request that the step has stopped has every generated token appended: the host cuts the rest off, since 0.33 off
    `num_computed_tokens` too.
    """
    if request.is_finished():
        return int(request.num_output_tokens - len(found["generated_token_ids"]))
    step, request_id = found["scheduler_output"], request.request_id
    cached = step.scheduled_cached_reqs
    if request_id not in cached.req_ids:
        new = next(r for r in step.scheduled_new_reqs if r.req_id == request_id)
        resumed = getattr(new, "prefill_token_ids", None)
        return len(resumed) - request.num_prompt_tokens if resumed is not None else 0
    index = cached.req_ids.index(request_id)
    if found["output_is_stale"]:  # preempted since: the count of computed tokens says nothing about this step
        return min(cached.num_output_tokens[index], request.num_output_tokens - _appended(found, request))
    reached = cached.num_computed_tokens[index] + step.num_scheduled_tokens[request_id] + request.num_in_flight_tokens
    rejected = reached - request.num_computed_tokens
    of_this_step = found.get("num_rejected", 0) if request_id in step.scheduled_spec_decode_tokens else 0
    earlier = max(0, rejected - of_this_step)
    return min(cached.num_output_tokens[index] - earlier, request.num_output_tokens)


def _appended(found: dict[str, Any], request: Any) -> int:
    """Return how many tokens of the interrupted step stand at the end of the output, as far as the tokens tell."""
    generated = list(found.get("generated_token_ids") or ())
    output = list(request.output_token_ids)
    return next((n for n in range(len(generated), 0, -1) if output[-n:] == generated[:n]), 0)


def _undo(scheduler: Any, request: Any, delivered: int) -> None:
    """Remove tokens that were appended and never sent, and let the request run again."""
    undelivered = request.num_output_tokens - delivered
    if undelivered > 0:
        del request._output_token_ids[delivered:]
        del request._all_token_ids[request.num_prompt_tokens + delivered :]
        del request.block_hashes[_whole_blocks(request) :]
    _undo_grammar(request)
    request.stop_reason = None
    # A request that was preempted while the step was in flight waits already.
    request.status = RequestStatus.RUNNING if request in scheduler.running else RequestStatus.PREEMPTED


def _whole_blocks(request: Any) -> int:
    """Count the block hashes of the remaining tokens with the host's hasher, which only ever appends."""
    if request._block_hasher is None:
        return 0
    present, request.block_hashes = request.block_hashes, []
    try:
        whole = len(request._block_hasher(request))
    finally:
        request.block_hashes = present
    return whole


def _undo_grammar(request: Any) -> None:
    structured = request.structured_output_request
    grammar = getattr(structured, "grammar", None)
    processed = getattr(grammar, "num_processed_tokens", None)
    if grammar is not None and processed is not None and processed > request.num_output_tokens:
        grammar.rollback(processed - request.num_output_tokens)
