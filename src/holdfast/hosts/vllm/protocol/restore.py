"""The restore of a worker after a fault: command, reply, and complete request histories, as bytes of typed messages.

A request history lets a rank that never saw a request continue that request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from holdfast.core.errors import RecoveryError
from holdfast.core.protocol.messages import Rendezvous

RESTORE = "holdfast_restore"  # name under which the call is bound to a worker

# Ranks of an engine receive a token at different moments, never further apart than the steps in flight.
TAIL_TOKENS = 64


class RequestPosition(msgspec.Struct, frozen=True, array_like=True):
    """The position at which a request resumes: number of output tokens delivered, and the last tokens of the output."""

    request_id: str
    output_tokens: int
    tail: tuple[int, ...] = ()


class RestoreCommand(msgspec.Struct, frozen=True):
    """Keep only `requests`, rewound to their positions, and take work again under `epoch`.

    With a `rendezvous` the rank first rebuilds its collectives, within `rebuild_timeout_s`.
    """

    nonce: str
    epoch: int
    requests: tuple[RequestPosition, ...]
    rendezvous: Rendezvous | None = None
    rebuild_timeout_s: float = 0.0
    histories: bytes = b""  # encoded `RequestHistory` of the same requests, where a rank may not know them


class RestoreReply(msgspec.Struct, frozen=True):
    """Reply of a rank. `unknown`: requests of the command that the rank never saw."""

    nonce: str
    unknown: tuple[str, ...] = ()
    error: str | None = None
    rebuild_s: float = 0.0


_commands = msgspec.msgpack.Decoder(RestoreCommand)
_replies = msgspec.msgpack.Decoder(RestoreReply)


def encode_command(command: RestoreCommand) -> bytes:
    """Encode a `RestoreCommand`."""
    return msgspec.msgpack.encode(command)


def decode_command(data: bytes) -> RestoreCommand:
    """Decode a `RestoreCommand`. Raises `msgspec.DecodeError`."""
    return _commands.decode(data)


def encode_reply(reply: RestoreReply) -> bytes:
    """Encode a `RestoreReply`."""
    return msgspec.msgpack.encode(reply)


def decode_reply(data: bytes) -> RestoreReply | None:
    """Decode a reply; return None for bytes that are no reply."""
    try:
        return _replies.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


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
