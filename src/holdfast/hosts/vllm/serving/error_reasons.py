"""Reasons of ended requests, for their clients: the host reports only an internal error.

An engine core sends the reason in the place of a stop reason. The API server keeps the latest reasons, bounded.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from holdfast.core.protocol.link_messages import PoisonRequestEnded
from holdfast.core.protocol.messages import MAX_ID_CHARS
from holdfast.hosts.vllm.contract.front_end_touchpoints import RAISE_IF_ERROR
from holdfast.hosts.vllm.contract.hooks import attach

MAX_KEPT = 256

_kept: OrderedDict[str, str] = OrderedDict()


def attach_error_reasons() -> None:
    """Attach to the host's HTTP serving if imported; a caller without HTTP sees the reason beside the tokens."""
    if RAISE_IF_ERROR.module in sys.modules:
        attach(RAISE_IF_ERROR, _raise_if_error)


def keep_error_reason(request_id: str, why: object) -> None:
    """Keep the reason of a request's error; `why` without a text is ignored."""
    if not isinstance(why, str):
        return
    _kept[request_id] = why
    while len(_kept) > MAX_KEPT:
        _kept.popitem(last=False)


def error_reason(request_id: str) -> str | None:
    """Return why a request ended, by the client's request id, a part of the engine's; None when no reason is known."""
    return next((why for known, why in reversed(_kept.items()) if f"{request_id}-" in f"{known}-"), None)


def _raise_if_error(
    original: Callable[..., None], serving: Any, finish_reason: str | None, request_id: str, *args: Any, **kwargs: Any
) -> None:
    why = error_reason(request_id) if finish_reason == "error" else None
    if why is not None:
        from vllm.exceptions import GenerationError

        raise GenerationError(why)
    original(serving, finish_reason, request_id, *args, **kwargs)


def poison_report(engine: bytes, request_id: str, reason: str) -> PoisonRequestEnded:
    """Return the report that a request was ended because each engine core that ran the request is lost."""
    engine_id = int.from_bytes(engine, "little")
    incident = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-engine{engine_id}-lost"
    return PoisonRequestEnded(
        engine_id=engine_id, request_id=request_id[:MAX_ID_CHARS], incident=incident, reason=reason
    )
