"""What an engine core asks of its workers to go on after a fault. Carried as bytes of a typed message."""

from __future__ import annotations

import msgspec

from holdfast.core.protocol.rendezvous import Rendezvous

RESTORE = "holdfast_restore"  # the name under which the order is bound to the worker


# Ranks of one engine learn of a token at different moments, never further apart than the steps in flight.
TAIL_TOKENS = 64


class RequestHistory(msgspec.Struct, frozen=True, array_like=True):
    """A request that goes on: how many of its tokens were delivered as output, and the last of them."""

    request_id: str
    output_tokens: int
    tail: tuple[int, ...] = ()


class RestoreCommand(msgspec.Struct, frozen=True):
    """Forget every request but these, stand where their histories end, take work again under `epoch`.

    With a `rendezvous` the rank first rebuilds its collectives there, within `rebuild_timeout_s`.
    """

    nonce: str
    epoch: int
    requests: tuple[RequestHistory, ...]
    rendezvous: Rendezvous | None = None
    rebuild_timeout_s: float = 0.0
    whole: bytes = b""  # the same requests with their whole history, where a rank may not know them


class RestoreReply(msgspec.Struct, frozen=True):
    """`unknown` are requests of the order that this rank never saw."""

    nonce: str
    unknown: tuple[str, ...] = ()
    error: str | None = None
    rebuild_s: float = 0.0


_orders = msgspec.msgpack.Decoder(RestoreCommand)
_replies = msgspec.msgpack.Decoder(RestoreReply)


def encode_order(order: RestoreCommand) -> bytes:
    return msgspec.msgpack.encode(order)


def decode_order(data: bytes) -> RestoreCommand:
    return _orders.decode(data)


def encode_reply(reply: RestoreReply) -> bytes:
    return msgspec.msgpack.encode(reply)


def decode_reply(data: bytes) -> RestoreReply | None:
    """A reply, or none for bytes that are something else."""
    try:
        return _replies.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
