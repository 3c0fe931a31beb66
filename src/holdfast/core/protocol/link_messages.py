"""What a front-end link and the owner of the engine cores say to each other: two tagged unions.

The same rules as for `messages`: fields with defaults only, nothing names a method to call, an id is the
same from the HTTP call to the last worker and back. Apart from `messages` because events are told here.
"""

from __future__ import annotations

import enum

import msgspec

from holdfast.core.errors import BadCommand, CommandConflict, HoldfastError, RecoveryFailed, UnknownEngine
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.events import Event, InstanceView


class ErrorKind(enum.StrEnum):
    """The errors that an instruction can end with, as they travel."""

    BAD_INSTRUCTION = "bad-instruction"
    UNKNOWN_ENGINE = "unknown-engine"
    CONFLICT = "conflict"
    FAILED = "failed"


class CommandError(msgspec.Struct, frozen=True, kw_only=True):
    """How an instruction ended that did not work: what an `OperatorError` or a `RecoveryFailed` says."""

    kind: ErrorKind
    message: str
    hint: str = ""
    state: str = ""


# ---- link -> owner


class LinkReported(m.Message, frozen=True, tag="link-reported"):
    """A link lives, and has seen the events up to `sequence`. Said again and again."""

    link_id: int
    pid: int
    hooks: tuple[str, ...]
    sequence: int = 0


class PoisonRequestEnded(m.Message, frozen=True, tag="request-blamed"):
    """An API server ended a request that every engine core dies of; `engine_id` is the last one."""

    engine_id: int
    request_id: str
    incident: str
    reason: str


FromLink = LinkReported | PoisonRequestEnded | Command


# ---- owner -> link


class Past(m.Message, frozen=True, tag="past"):
    """Events that a link has not seen, oldest first."""

    events: tuple[Event, ...]


class Present(m.Message, frozen=True, tag="present"):
    """The instance as it is now. It answers every `LinkReported`, so it also says that the owner lives."""

    view: InstanceView


class Published(m.Message, frozen=True, tag="published"):
    """One event, and the instance after it."""

    event: Event
    view: InstanceView


class Settled(m.Message, frozen=True, tag="settled"):
    """An instruction has ended."""

    command_id: str
    error: CommandError | None = None


ToLink = Past | Present | Published | Settled


# ---- encoding

_encoder = msgspec.msgpack.Encoder()
_from_link: msgspec.msgpack.Decoder[FromLink] = msgspec.msgpack.Decoder(FromLink)
_to_link: msgspec.msgpack.Decoder[ToLink] = msgspec.msgpack.Decoder(ToLink)


def encode(message: FromLink | ToLink) -> bytes:
    return _encoder.encode(message)


def decode_from_link(data: bytes) -> FromLink:
    return m.decode_with(_from_link, data)


def decode_to_link(data: bytes) -> ToLink:
    return m.decode_with(_to_link, data)


# ---- errors


def describe(error: BaseException) -> CommandError:
    """An instruction's error as it travels."""
    match error:
        case BadCommand():
            kind = ErrorKind.BAD_INSTRUCTION
        case UnknownEngine():
            kind = ErrorKind.UNKNOWN_ENGINE
        case CommandConflict():
            return CommandError(kind=ErrorKind.CONFLICT, message=error.message, hint=error.hint, state=str(error.state))
        case _:
            kind = ErrorKind.FAILED
    if isinstance(error, HoldfastError):
        return CommandError(kind=kind, message=error.message, hint=error.hint)
    return CommandError(kind=kind, message=f"{type(error).__name__}: {error}")


def as_error(told: CommandError) -> HoldfastError:
    """The error that was described: a caller cannot tell on which side of the wire it was raised."""
    match told.kind:
        case ErrorKind.BAD_INSTRUCTION:
            return BadCommand(told.message, hint=told.hint)
        case ErrorKind.UNKNOWN_ENGINE:
            return UnknownEngine(told.message, hint=told.hint)
        case ErrorKind.CONFLICT:
            return CommandConflict(told.message, state=told.state, hint=told.hint)
        case ErrorKind.FAILED:
            return RecoveryFailed(told.message, hint=told.hint)
