"""Why a request was ended, told to its client: the host says only that something went wrong inside.

An engine core sends the reason where a stop reason stands. Kept for a moment in the process that serves, bounded.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.contract.front_end_touchpoints import RAISE_IF_ERROR
from holdfast.hosts.vllm.contract.hooks import attach

MAX_KEPT = 256

_kept: OrderedDict[str, str] = OrderedDict()


def attach_error_reasons() -> None:
    """Where the host serves over HTTP; elsewhere its caller sees the reason beside the tokens."""
    if RAISE_IF_ERROR.module in sys.modules:
        attach(RAISE_IF_ERROR, _raise_if_error)


def keep_error_reason(request_id: str, why: object) -> None:
    """Remember why a request ended with an error; nothing where nobody has said so."""
    if not isinstance(why, str):
        return
    _kept[request_id] = why
    while len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)


def error_reason(request_id: str) -> str | None:
    """Why a request ended, by the id that its client knows: the engine's has something before and behind it."""
    return next((why for known, why in reversed(_kept.items()) if f"{request_id}-" in f"{known}-"), None)


def _raise_if_error(
    original: Callable[..., None], serving: Any, finish_reason: str | None, request_id: str, *args: Any, **kwargs: Any
) -> None:
    why = error_reason(request_id) if finish_reason == "error" else None
    if why is not None:
        from vllm.exceptions import GenerationError

        raise GenerationError(why)
    original(serving, finish_reason, request_id, *args, **kwargs)


def idle_outputs_of(client: Any, engine: bytes) -> Any:
    """What a lost engine core could not say any more: that nothing runs or waits there. The host's gauges show it."""
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats

    index = client.core_engines.index(engine) + client.engine_ranks_managed[0]
    return EngineCoreOutputs(engine_index=index, scheduler_stats=SchedulerStats())
