"""Refusal of requests that cannot be sent to an engine core, before anything is kept of them.

The host checks most fields. A number beyond 64 bits or half a character in the others only shows as the request is
encoded for the engine core: the host answers that with status 500, and keeps the request for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

_encoder = msgspec.msgpack.Encoder(enc_hook=lambda value: None)  # values of the host's own types are not the client's


def check_inputs(
    original: Callable[..., Any], processor: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
) -> Any:
    """Process a client's inputs as the host does, unless the request cannot be sent to an engine core.

    Raises:
        VLLMValidationError: the host's error for a bad request, answered with status 400.
    """
    if why := why_unsendable(request_id, params):
        from vllm.exceptions import VLLMValidationError

        raise VLLMValidationError(why)
    return original(processor, request_id, prompt, params, *args, **kwargs)


def why_unsendable(request_id: str, params: Any) -> str:
    """Return why a request with these parameters cannot be sent, in words; empty when it can be."""
    try:
        _encoder.encode((request_id, params))
    except OverflowError:
        return "a number in the request is below -2^63 or above 2^64 - 1"
    except UnicodeEncodeError as error:
        return f"a text in the request is no valid Unicode: half of a surrogate pair ({error.object[error.start]!a})"
    return ""
