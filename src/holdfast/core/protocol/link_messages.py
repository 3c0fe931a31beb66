"""What a front-end link and the owner of the engine cores say to each other: two tagged unions.

The same rules as for `messages`: fields with defaults only, nothing names a method to call, an id is the
same from the HTTP call to the last worker and back. Apart from `messages` because events are told here.
"""

from __future__ import annotations

import enum

import msgspec

from holdfast.core.errors import (
    BadCommand,
    CommandConflict,
    HoldfastError,
    RecoveryFailed,
    UnknownEngine,
    UnknownIncident,
)
from holdfast.core.faults.redaction import account_of
from holdfast.core.poison.memory import FoundGuilty
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.decoding import Message, decode_with
from holdfast.core.protocol.events import Event, InstanceView


class ErrorKind(enum.StrEnum):
    """Kinds of errors that end a command, on the wire."""

    BAD_COMMAND = "bad-command"
    UNKNOWN_ENGINE = "unknown-engine"
    CONFLICT = "conflict"
    UNKNOWN_INCIDENT = "unknown-incident"
    FAILED = "failed"


class CommandError(msgspec.Struct, frozen=True, kw_only=True):
    """Error of a command: an `OperatorError` or a `RecoveryFailed` on the wire."""

    kind: ErrorKind
    message: str
    hint: str = ""
    state: str = ""


# ---- link -> owner


class LinkReported(Message, frozen=True, tag="link-reported"):
    """Sign of life of a link, which has seen the events up to `sequence`. Repeated every few seconds."""

    link_id: int
    pid: int
    hooks: tuple[str, ...]
    sequence: int = 0


class PoisonRequestEnded(Message, frozen=True, tag="request-blamed"):
    """Report of an API server that ended a poison request; `engine_id` is the engine core lost last."""

    engine_id: int
    request_id: str
    incident: str
    reason: str


class GuiltReported(Message, frozen=True, tag="guilt-reported"):
    """Verdict on a request of an API server: repetitions are to be refused."""

    guilty: FoundGuilty


class RequestsRefused(Message, frozen=True, tag="requests-refused"):
    """Refusals of repetitions by an API server, since the last report about the fingerprint."""

    fingerprint: str
    count: int


class Submitted(Message, frozen=True, tag="submitted"):
    """Command of a caller. `submission` is the link's own id: a caller may send the same command again, on any link."""

    submission: str
    command: Command


class IncidentsAsked(Message, frozen=True, tag="incidents-asked"):
    """Question about incidents, as `ControlPlane.incidents` takes it: the part of the answer from `offset`."""

    question: str
    asked: str
    offset: int = 0


FromLink = LinkReported | PoisonRequestEnded | GuiltReported | RequestsRefused | Submitted | IncidentsAsked


# ---- owner -> link


class Past(Message, frozen=True, tag="past"):
    """Events that a link has not seen, oldest first: all that the owner still knows after the event `after`."""

    events: tuple[Event, ...]
    after: int = 0


class Present(Message, frozen=True, tag="present"):
    """Present view of the instance. Answers every `LinkReported`, which also shows that the owner lives."""

    view: InstanceView


class Published(Message, frozen=True, tag="published"):
    """Event, and the instance after the event."""

    event: Event
    view: InstanceView


class Settled(Message, frozen=True, tag="settled"):
    """End of the command of a submission."""

    submission: str
    error: CommandError | None = None


class IncidentsAnswered(Message, frozen=True, tag="incidents-answered"):
    """Part of an answer about incidents, of `total` bytes."""

    question: str
    part: bytes = b""
    offset: int = 0
    total: int = 0
    error: CommandError | None = None


ToLink = Past | Present | Published | Settled | IncidentsAnswered


# ---- encoding

_encoder = msgspec.msgpack.Encoder()
_from_link: msgspec.msgpack.Decoder[FromLink] = msgspec.msgpack.Decoder(FromLink)
_to_link: msgspec.msgpack.Decoder[ToLink] = msgspec.msgpack.Decoder(ToLink)


def encode(message: FromLink | ToLink) -> bytes:
    return _encoder.encode(message)


def decode_from_link(data: bytes) -> FromLink:
    return decode_with(_from_link, data)


def decode_to_link(data: bytes) -> ToLink:
    return decode_with(_to_link, data)


# ---- errors


def describe(error: BaseException) -> CommandError:
    """Return an error of a command as the wire carries the error."""
    match error:
        case BadCommand():
            kind = ErrorKind.BAD_COMMAND
        case UnknownEngine():
            kind = ErrorKind.UNKNOWN_ENGINE
        case UnknownIncident():
            kind = ErrorKind.UNKNOWN_INCIDENT
        case CommandConflict():
            return CommandError(kind=ErrorKind.CONFLICT, message=error.message, hint=error.hint, state=str(error.state))
        case _:
            kind = ErrorKind.FAILED
    if isinstance(error, HoldfastError):
        return CommandError(kind=kind, message=error.message, hint=error.hint)
    return CommandError(kind=kind, message=str(account_of(error)))


def as_error(told: CommandError) -> HoldfastError:
    """Return the error that `describe` described; a caller cannot tell the side that raised the error."""
    match told.kind:
        case ErrorKind.BAD_COMMAND:
            return BadCommand(told.message, hint=told.hint)
        case ErrorKind.UNKNOWN_ENGINE:
            return UnknownEngine(told.message, hint=told.hint)
        case ErrorKind.UNKNOWN_INCIDENT:
            return UnknownIncident(told.message, hint=told.hint)
        case ErrorKind.CONFLICT:
            return CommandConflict(told.message, state=told.state, hint=told.hint)
        case _:  # FAILED
            return RecoveryFailed(told.message, hint=told.hint)
