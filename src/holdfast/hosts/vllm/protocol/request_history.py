"""A request with its whole history, for a worker that never saw it: prompt, output so far, sampling.

The same for a worker that takes a dead one's place and for a request that another engine core began. Carried
as bytes of a typed message. State that is nowhere at hand any more is not invented: such a request ends alone.
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
    """A request whose state cannot be made again elsewhere; the message says what of it."""


class WholeRequest(msgspec.Struct, frozen=True, array_like=True):
    """Everything that a rank needs to go on with a request as if it had computed all of it."""

    request_id: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    sampling_params: SamplingParams
    lora_request: LoRARequest | None = None


def whole_request(request: Any) -> WholeRequest:
    """The history of one of the scheduler's requests. Raises `NotRestorable`."""
    if lacking := _lacking(request):
        raise NotRestorable(f"request {request.request_id} cannot go on in another process: {lacking}")
    return WholeRequest(
        request_id=request.request_id,
        prompt_token_ids=list(request.prompt_token_ids),
        output_token_ids=list(request.output_token_ids),
        sampling_params=request.sampling_params,
        lora_request=request.lora_request,
    )


def _lacking(request: Any) -> str:
    if request.mm_features:
        return "its multimodal features are no longer at hand"
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        return "its prompt is embeddings, which are no longer at hand"
    return "" if request.sampling_params is not None else "it gathers a result over its whole prompt"


def encode_whole(requests: Iterable[WholeRequest]) -> bytes:
    # One frame: tokens and parameters hold no tensors, which alone would travel in frames of their own.
    [frame] = MsgpackEncoder().encode(list(requests))
    return bytes(frame)


def decode_whole(data: bytes) -> list[WholeRequest]:
    requests: list[WholeRequest] = MsgpackDecoder(list[WholeRequest]).decode(data)
    return requests
