"""What every union of messages shares: the base of the messages, and decoding of what arrives."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from holdfast.core.errors import BadConfiguration

MAX_MESSAGE_BYTES = 1 << 20

M = TypeVar("M")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the messages: between sentinels, with API servers, with agents of nodes."""


class Undecodable(Exception):
    """Bytes that no message of the union decodes."""


def decode_with(decoder: msgspec.msgpack.Decoder[M], data: bytes) -> M:
    """Return the decoded message. Raises `Undecodable`, and no other error, for foreign bytes."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise Undecodable(f"{len(data)} bytes are more than {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadConfiguration) as error:
        raise Undecodable(str(error)) from None
