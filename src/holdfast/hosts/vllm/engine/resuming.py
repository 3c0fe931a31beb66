"""A request that another engine core began: how its history travels, and how an engine core goes on from it.

The history rides in the request itself, under a private key of its sampling parameters: tokens that were delivered
as output stay output. The engine core takes the key out before anything else sees the request.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from vllm.v1.request import RequestStatus

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.contract.registry import ADD_TO_SCHEDULER, MAKE_REQUEST, attach
from holdfast.hosts.vllm.engine.pacing import PacedPrefill
from holdfast.hosts.vllm.protocol.calls import HISTORY, LEARN
from holdfast.hosts.vllm.protocol.request_history import encode_whole, whole_request

_PACED = "holdfast_paced"
GRAMMAR_TIMEOUT_S = 20.0
LEARN_TIMEOUT_S = 30.0


# ---- in the front end


def unmovable(request: Any) -> str:
    """Why no other engine core could go on with a request, in words; empty where one could."""
    if request.mm_features:
        return "its multimodal features are no longer at hand"
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        return "its prompt is embeddings, which are no longer at hand"
    if request.resumable:
        return "its input is still being streamed"
    return "its KV is handed over between instances" if _hands_over(request) else ""


def _hands_over(request: Any) -> bool:
    extra = (request.sampling_params.extra_args if request.sampling_params is not None else None) or {}
    return bool(extra.get("kv_transfer_params") or extra.get("ec_transfer_params"))


def strip_history(request: Any) -> None:
    """A client may name any key: this one is not theirs."""
    params = request.sampling_params
    if params is not None and params.extra_args and HISTORY in params.extra_args:
        params.extra_args = {key: value for key, value in params.extra_args.items() if key != HISTORY}


def resumption(request: Any, delivered: Sequence[int]) -> Any:
    """The request that lets another engine core go on behind what was delivered. The original stays as it was."""
    again = copy.copy(request)
    again.data_parallel_rank = None
    if request.sampling_params is not None:
        again.sampling_params = params = request.sampling_params.clone()
        params.extra_args = {**(params.extra_args or {}), HISTORY: list(delivered)}
        if delivered:
            params.prompt_logprobs = None  # they were delivered with the first token
    return again


# ---- in the engine core


def attach_resuming_hooks() -> None:
    attach(MAKE_REQUEST, _make_request)
    attach(ADD_TO_SCHEDULER, _add_to_scheduler)


def pace(engine: Any, paced: PacedPrefill) -> PacedPrefill:
    """Let it know of requests that come from another engine core."""
    vars(engine)[_PACED] = paced
    return paced


def _make_request(original: Callable[..., tuple[Any, int]], engine: Any, request: Any) -> tuple[Any, int]:
    """Runs on the input thread. What raises here ends this request alone."""
    history = _take_history(request)
    made, wave = original(engine, request)
    if history:
        _go_on_from(engine, made, history)
    if history is not None and (paced := vars(engine).get(_PACED)) is not None:
        paced.expect(made.request_id)
    return made, wave


def _take_history(request: Any) -> list[int] | None:
    """Empty where another engine core had a request and nothing was delivered."""
    params = request.sampling_params
    if params is None or not params.extra_args or HISTORY not in params.extra_args:
        return None
    history: list[int] = params.extra_args.pop(HISTORY)
    params.extra_args = params.extra_args or None
    return history


def _go_on_from(engine: Any, request: Any, history: Sequence[int]) -> None:
    """As if this engine core had computed the history and preempted the request since."""
    if request.use_structured_output:
        _await_grammar(request)
    for token in history:
        request.append_output_token_ids(token)
        if not engine.structured_output_manager.accept_tokens(request, [token]):
            raise RecoveryFailed(f"the grammar of request {request.request_id} does not accept its own history")
    request.status = RequestStatus.PREEMPTED
    request.num_preemptions += 1
    request.take_prefill_stats()  # its prefill was told when it was first done


def _await_grammar(request: Any) -> None:
    grammar = request.structured_output_request._grammar
    if isinstance(grammar, Future):
        grammar.result(GRAMMAR_TIMEOUT_S)


def _add_to_scheduler(original: Callable[..., None], engine: Any, request: Any, request_wave: int = 0) -> None:
    """Runs on the busy loop's thread, between two steps."""
    if request.num_output_tokens and not engine.scheduler.use_v2_model_runner:
        # V1 keeps a request's tokens in the worker; V2 is sent them when it is scheduled.
        known = encode_whole([whole_request(request)])
        engine.model_executor.collective_rpc(LEARN, timeout=LEARN_TIMEOUT_S, args=(known,))
    if (paced := vars(engine).get(_PACED)) is not None:
        paced.arrived(request)
    original(engine, request, request_wave)
