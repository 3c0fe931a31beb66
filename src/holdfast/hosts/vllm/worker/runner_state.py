"""Bring a model runner back to the histories of the requests that go on. Runs on the main thread.

V1 keeps each request's tokens and generator in the worker: what is known is cut back to what was
delivered, everything else is forgotten. V2 is sent every resumed request whole, so it forgets all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast.hosts.vllm.protocol.request_history import WholeRequest
from holdfast.hosts.vllm.protocol.restore import RequestHistory
from holdfast.hosts.vllm.worker.generators import new_generator, stand_after


def restore_runner(runner: Any, requests: Sequence[RequestHistory]) -> tuple[str, ...]:
    """Restore; the ids of requests that this rank never saw."""
    runner.execute_model_state = None
    if hasattr(runner, "req_states"):
        return _restore_v2(runner)
    return _restore_v1(runner, requests)


def learn(runner: Any, requests: Sequence[WholeRequest]) -> None:
    """Know requests that others began. V2 is sent each of them whole when it is scheduled.

    They wait for blocks: the scheduler gives them new ones when it resumes them.
    """
    if hasattr(runner, "req_states"):
        return
    for request in requests:
        runner.requests[request.request_id] = _state_of(runner, request)
        prompt_logprobs = request.sampling_params.prompt_logprobs
        if prompt_logprobs is not None and not request.output_token_ids:
            every = runner.input_batch.vocab_size
            runner.num_prompt_logprobs[request.request_id] = every if prompt_logprobs == -1 else prompt_logprobs


def _state_of(runner: Any, request: WholeRequest) -> Any:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    params = request.sampling_params
    groups = len(runner.input_batch.block_table.block_tables)
    return CachedRequestState(
        req_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=[],
        sampling_params=params,
        generator=new_generator(params, len(request.output_token_ids), runner),
        block_ids=tuple([] for _ in range(groups)),
        num_computed_tokens=0,
        output_token_ids=list(request.output_token_ids),
        lora_request=request.lora_request,
    )


def _restore_v2(runner: Any) -> tuple[str, ...]:
    for request_id in sorted(runner.req_states.req_id_to_index):
        runner._remove_request(request_id)
    return ()


def _restore_v1(runner: Any, requests: Sequence[RequestHistory]) -> tuple[str, ...]:
    runner.kv_connector_output = None
    _empty_batch(runner.input_batch)
    histories = {r.request_id: r for r in requests}
    for request_id in [r for r in runner.requests if r not in histories]:
        del runner.requests[request_id]
        runner.num_prompt_logprobs.pop(request_id, None)
    for request_id, history in histories.items():
        if request_id in runner.requests:
            _stand_at(runner, runner.requests[request_id], history)
    return tuple(r for r, history in histories.items() if not _reaches(runner.requests.get(r), history))


def _empty_batch(batch: Any) -> None:
    for request_id in list(batch.req_id_to_index):
        batch.remove_request(request_id)
    batch.condense()
    batch.refresh_metadata()
    batch.prev_sampled_token_ids = None
    batch.prev_req_id_to_index = None
    # Tokens of the step before, still on their way to the CPU under asynchronous scheduling.
    batch.sampled_token_ids_cpu = None
    batch.async_copy_ready_event = None


def _stand_at(runner: Any, state: Any, history: RequestHistory) -> None:
    """Cut back what was not delivered; add what was delivered before this rank had heard of it."""
    state.output_token_ids[history.output_tokens - len(history.tail) :] = history.tail
    state.prev_num_draft_len = 0
    if state.generator is not None:
        stand_after(state.generator, state.sampling_params.seed, history.output_tokens, runner)


def _reaches(state: Any | None, history: RequestHistory) -> bool:
    return state is not None and len(state.output_token_ids) == history.output_tokens
