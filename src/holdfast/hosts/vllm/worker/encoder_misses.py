"""Errors of a step that misses an encoder's output name the requests with that input."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from holdfast.core.faults.classification import NAMES_CAUSE
from holdfast.hosts.vllm.contract.name_touchpoints import ENCODER_MISS


def naming_encoder_misses(runner: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step so that the error of a missing encoder output names its requests."""

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except RuntimeError as error:
            if request_ids := _requests_with(str(error), runner):
                vars(error).update({"request_ids": request_ids, NAMES_CAUSE: True})
            raise

    return run


def _requests_with(text: str, runner: Any) -> tuple[str, ...]:
    """Return the requests with the input that an error names; none for any other error."""
    _, found, rest = text.partition(ENCODER_MISS)
    if not found:
        return ()
    identifier = rest.removesuffix(".")
    by_request = getattr(runner.encoder_cache, "mm_features", None)  # runner V2
    if by_request is None:
        by_request = {request_id: state.mm_features for request_id, state in runner.requests.items()}
    return tuple(i for i, features in by_request.items() if any(f.identifier == identifier for f in features))
