"""Request histories: all that lets a rank continue a request that the rank never saw, and their encoding.

Whatever the host tells a rank of a new request is in a history, and whatever a rank computes from that is computed for
a restored request too. A contract test compares both, field by field.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sampling_params import SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from holdfast.core.errors import RecoveryError
from holdfast.hosts.vllm.protocol import drawn_before
from holdfast.hosts.vllm.worker.seeded_generator import new_generator


class NotRestorable(RecoveryError):
    """A request cannot be resumed in another process; the message names the missing state."""


class RequestHistory(msgspec.Struct, frozen=True, array_like=True):
    """All that a rank needs to resume a request as if the rank had computed the output so far."""

    request_id: str
    prompt_token_ids: list[int] | None
    output_token_ids: list[int]
    sampling_params: SamplingParams
    lora_request: LoRARequest | None
    mm_features: list[MultiModalFeatureSpec]
    prompt_embeds: torch.Tensor | None
    prompt_is_token_ids: list[bool] | None
    drawn: int = 0  # tokens sampled in earlier turns of a streaming session


def history_of(request: Any) -> RequestHistory:
    """Return the history of a request of the scheduler. Raises `NotRestorable`."""
    if request.sampling_params is None:
        missing = "it gathers a result over its whole prompt"
        raise NotRestorable(f"request {request.request_id} cannot go on in another process: {missing}")
    return RequestHistory(
        request_id=request.request_id,
        prompt_token_ids=None if request.prompt_token_ids is None else list(request.prompt_token_ids),
        output_token_ids=list(request.output_token_ids),
        sampling_params=request.sampling_params,
        lora_request=request.lora_request,
        mm_features=list(request.mm_features or ()),
        prompt_embeds=request.prompt_embeds,
        prompt_is_token_ids=request.prompt_is_token_ids,
        drawn=drawn_before(request),
    )


def encode_histories(requests: Iterable[RequestHistory]) -> bytes:
    """Encode histories. The host puts each tensor into a frame of its own."""
    return msgspec.msgpack.encode(list(MsgpackEncoder().encode(list(requests))))


def decode_histories(data: bytes) -> list[RequestHistory]:
    """Decode histories. Raises `msgspec.DecodeError`."""
    frames = msgspec.msgpack.decode(data, type=list[bytearray])  # memory that a tensor may share
    requests: list[RequestHistory] = MsgpackDecoder(list[RequestHistory]).decode(frames)
    return requests


def add_requests(runner: Any, requests: Iterable[RequestHistory]) -> None:
    """Add requests that another process began, without blocks: the scheduler gives them blocks as they resume.

    Runner V2 needs nothing: every request is sent in full when it is scheduled.
    """
    if hasattr(runner, "req_states"):
        return
    for request in requests:
        runner.requests[request.request_id] = _new_state(runner, request)
        prompt_logprobs = request.sampling_params.prompt_logprobs
        if prompt_logprobs is not None and not request.output_token_ids:
            every = runner.input_batch.vocab_size
            runner.num_prompt_logprobs[request.request_id] = every if prompt_logprobs == -1 else prompt_logprobs


def _new_state(runner: Any, request: RequestHistory) -> Any:
    from vllm.v1.worker.gpu_input_batch import CachedRequestState

    params = request.sampling_params
    groups = len(runner.input_batch.block_table.block_tables)
    state = CachedRequestState(
        req_id=request.request_id,
        prompt_token_ids=request.prompt_token_ids,
        prompt_embeds=request.prompt_embeds,
        prompt_is_token_ids=request.prompt_is_token_ids,
        mm_features=request.mm_features,
        sampling_params=params,
        generator=new_generator(params, request.drawn + len(request.output_token_ids), runner),
        block_ids=tuple([] for _ in range(groups)),
        num_computed_tokens=0,
        output_token_ids=list(request.output_token_ids),
        lora_request=request.lora_request,
    )
    if runner.uses_mrope:
        runner._init_mrope_positions(state)
    return state


def lacks_features(state: Any) -> bool:
    """Tell whether a rank was sent a request without pictures that the prefix cache covered: at most their shapes."""
    return any(
        feature.data is None or all(part.field.keep_on_cpu for part in feature.data.values())
        for feature in state.mm_features
    )
