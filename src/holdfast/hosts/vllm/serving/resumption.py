"""Requests that move to another engine core: which can, and the request that resumes behind the delivered tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from holdfast.hosts.vllm.protocol import DRAWN, HISTORY, ON_TRIAL

_PRIVATE = (HISTORY, DRAWN, ON_TRIAL)


def unmovable(request: Any) -> str:
    """Return why a request cannot move to another engine core, in words; empty when a move is possible."""
    if any(feature.data is None for feature in request.mm_features or ()):
        return "its multimodal inputs are not at hand"
    return "its KV is handed over between instances" if _hands_over(request) else ""


def _hands_over(request: Any) -> bool:
    extra = (request.sampling_params.extra_args if request.sampling_params is not None else None) or {}
    return bool(extra.get("kv_transfer_params") or extra.get("ec_transfer_params"))


def strip_private_keys(request: Any) -> None:
    """Remove the private keys from a client's request."""
    params = request.sampling_params
    if params is not None and params.extra_args and not params.extra_args.keys().isdisjoint(_PRIVATE):
        kept = {key: value for key, value in params.extra_args.items() if key not in _PRIVATE}
        params.extra_args = kept or None


def put_on_trial(request: Any) -> bool:
    """Mark a request that was found guilty before; return whether the request can be marked."""
    params = request.sampling_params
    if params is None:
        return False
    params.extra_args = {**(params.extra_args or {}), ON_TRIAL: True}
    return True


def is_on_trial(request: Any) -> bool:
    """Return whether a request is marked by `put_on_trial`."""
    params = request.sampling_params
    return params is not None and ON_TRIAL in (params.extra_args or {})


def resumption(request: Any, delivered: Sequence[int], drawn: int = 0) -> Any:
    """Return a copy of `request` that another engine core resumes behind the `delivered` tokens.

    Args:
        drawn: tokens delivered in earlier turns of a streaming session, which are part of the prompt.
    """
    again = copy.copy(request)
    again.data_parallel_rank = None
    if request.sampling_params is not None:
        again.sampling_params = params = request.sampling_params.clone()
        params.extra_args = {**(params.extra_args or {}), HISTORY: list(delivered), DRAWN: drawn}
        if delivered or drawn:
            params.prompt_logprobs = None  # delivered with the first token
    return again
