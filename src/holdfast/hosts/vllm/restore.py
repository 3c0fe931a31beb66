"""What an engine core asks of its workers to go on after a fault. Carried as bytes of a typed message."""

from __future__ import annotations

import msgspec

RESTORE = "holdfast_restore"  # the name under which the order is bound to the worker


class RequestHistory(msgspec.Struct, frozen=True, array_like=True):
    """A request that goes on: how many of its tokens were delivered as output."""

    request_id: str
    output_tokens: int


class RestoreOrder(msgspec.Struct, frozen=True):
    """Forget every request but these, stand where their histories end, take work again under `epoch`."""

    nonce: str
    epoch: int
    requests: tuple[RequestHistory, ...]


class RestoreReply(msgspec.Struct, frozen=True):
    """`unknown` are requests of the order that this rank never saw."""

    nonce: str
    unknown: tuple[str, ...] = ()
    error: str | None = None


_orders = msgspec.msgpack.Decoder(RestoreOrder)
_replies = msgspec.msgpack.Decoder(RestoreReply)


def encode_order(order: RestoreOrder) -> bytes:
    return msgspec.msgpack.encode(order)


def decode_order(data: bytes) -> RestoreOrder:
    return _orders.decode(data)


def encode_reply(reply: RestoreReply) -> bytes:
    return msgspec.msgpack.encode(reply)


def decode_reply(data: bytes) -> RestoreReply | None:
    """A reply, or none for bytes that are something else."""
    try:
        return _replies.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
