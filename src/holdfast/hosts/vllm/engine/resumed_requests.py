"""Resume a request that another engine core began.

The history of the request travels in the request itself, under a private key of the sampling parameters: tokens that
were delivered as output stay output. The engine core removes the key before any further code sees the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from vllm.v1.request import RequestStatus

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.contract.engine_touchpoints import ADD_TO_SCHEDULER, MAKE_REQUEST, REFUSE_WHILE_PAUSED
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.engine.pacing import PacedPrefill
from holdfast.hosts.vllm.protocol import ADD_REQUESTS, DRAWN, HISTORY, ON_TRIAL, drawn_before, set_drawn_before
from holdfast.hosts.vllm.worker.request_history import encode_histories, history_of

_PACED = "holdfast_paced"
IS_ON_TRIAL = "holdfast_is_on_trial"  # attribute of a request
_IS_RESUMED = "holdfast_is_resumed"  # attribute of a request
GRAMMAR_TIMEOUT_S = 20.0
ADD_REQUESTS_TIMEOUT_S = 30.0


def attach_resumption_hooks() -> None:
    attach(MAKE_REQUEST, _make_request)
    attach(ADD_TO_SCHEDULER, _add_to_scheduler)
    attach(REFUSE_WHILE_PAUSED, _refuse_while_paused)


def pace_resumed_requests(engine: Any, paced: PacedPrefill) -> None:
    """Have resumed requests of an engine core paced."""
    vars(engine)[_PACED] = paced


def _make_request(original: Callable[..., tuple[Any, int]], engine: Any, request: Any) -> tuple[Any, int]:
    """Make the scheduler's request with its history. Input thread; an exception fails the request alone."""
    history, drawn, on_trial = (_take(request, key) for key in (HISTORY, DRAWN, ON_TRIAL))
    made, wave = original(engine, request)
    if drawn:
        set_drawn_before(made, drawn)
    if on_trial:
        vars(made)[IS_ON_TRIAL] = True
    if history:
        _append_history(engine, made, history)
    if history is not None:
        vars(made)[_IS_RESUMED] = True
    if history is not None and (paced := vars(engine).get(_PACED)) is not None:
        paced.expect(made.request_id)
    return made, wave


def tell_workers(engine: Any, requests: Iterable[Any]) -> None:
    """Make requests with output known to the workers, under runner V1. Busy loop's thread, between two steps."""
    histories = encode_histories(map(history_of, requests))
    engine.model_executor.collective_rpc(ADD_REQUESTS, timeout=ADD_REQUESTS_TIMEOUT_S, args=(histories,))


def _take(request: Any, key: str) -> Any:
    """Remove and return a private value; None without one. The history of a request may be empty."""
    params = request.sampling_params
    if params is None or not params.extra_args or key not in params.extra_args:
        return None
    value = params.extra_args.pop(key)
    params.extra_args = params.extra_args or None
    return value


def _append_history(engine: Any, request: Any, history: Sequence[int]) -> None:
    """Bring a request to the state in which the engine core has computed the history and then preempted it."""
    if request.use_structured_output:
        _await_grammar(request)
    for token in history:
        request.append_output_token_ids(token)
        if not engine.structured_output_manager.accept_tokens(request, [token]):
            raise RecoveryFailed(f"the grammar of request {request.request_id} does not accept its own history")
    request.status = RequestStatus.PREEMPTED
    request.num_preemptions += 1
    request.take_prefill_stats()  # the first engine core has reported the prefill


def _await_grammar(request: Any) -> None:
    grammar = request.structured_output_request._grammar
    if isinstance(grammar, Future):
        grammar.result(GRAMMAR_TIMEOUT_S)


def _refuse_while_paused(original: Callable[..., bool], engine: Any, request: Any) -> bool:
    """Return whether a paused host refuses a request. A request that is sent again waits: it was accepted before."""
    return _IS_RESUMED not in vars(request) and original(engine, request)


def _add_to_scheduler(original: Callable[..., None], engine: Any, request: Any, request_wave: int = 0) -> None:
    """Make a resumed request known to the workers before it is scheduled. Busy loop's thread, between two steps."""
    if (request.num_output_tokens or drawn_before(request)) and not engine.scheduler.use_v2_model_runner:
        # Runner V1 keeps the tokens of a request in the worker; V2 is sent them when the request is scheduled.
        tell_workers(engine, [request])
    if (paced := vars(engine).get(_PACED)) is not None:
        paced.arrived(request)
    original(engine, request, request_wave)
