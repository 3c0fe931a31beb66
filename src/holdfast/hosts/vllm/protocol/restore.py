"""The restore of a worker after a fault: command and reply, as bytes of a typed message."""

from __future__ import annotations

import msgspec

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
