"""The history of a request, for a worker that never saw the request: prompt, output so far, sampling.

Sent to a replacement worker, and to the workers of an engine core that resumes a request of another engine core, as
bytes of a typed message. A request whose state is lost fails alone with `NotRestorable`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from holdfast.core.errors import RecoveryError


class NotRestorable(RecoveryError):
    """A request cannot be resumed in another process; the message names the missing state."""


class RequestHistory(msgspec.Struct, frozen=True, array_like=True):
    """All that a rank needs to resume a request as if the rank had computed the output so far."""

    request_id: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    sampling_params: SamplingParams
    lora_request: LoRARequest | None = None


def history_of(request: Any) -> RequestHistory:
    """Return the history of a request of the scheduler. Raises `NotRestorable`."""
    if missing := _missing_state(request):
        raise NotRestorable(f"request {request.request_id} cannot go on in another process: {missing}")
    return RequestHistory(
        request_id=request.request_id,
        prompt_token_ids=list(request.prompt_token_ids),
        output_token_ids=list(request.output_token_ids),
        sampling_params=request.sampling_params,
        lora_request=request.lora_request,
    )


def _missing_state(request: Any) -> str:
    if request.mm_features:
        return "its multimodal features are no longer at hand"
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "its prompt is embeddings, which are no longer at hand"
    return "" if request.sampling_params is not None else "it gathers a result over its whole prompt"


def encode_histories(requests: Iterable[RequestHistory]) -> bytes:
    """Encode histories to a single frame."""
    # One frame: only tensors would travel in further frames, and a history holds none.
    [frame] = MsgpackEncoder().encode(list(requests))
    return bytes(frame)


def decode_histories(data: bytes) -> list[RequestHistory]:
    """Decode histories. Raises `msgspec.DecodeError`."""
    requests: list[RequestHistory] = MsgpackDecoder(list[RequestHistory]).decode(data)
    return requests
