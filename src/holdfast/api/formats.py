"""What the control endpoints read and write: both request formats, status, events, errors.

Pure: bytes and views in, structs out. Nothing here knows a web framework.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from holdfast.core.errors import BadInstruction, HoldfastError, InstructionConflict
from holdfast.core.events import EngineView, Event, InstanceView
from holdfast.core.injection import InjectionSpec
from holdfast.core.states import EngineState

MAX_BODY_BYTES = 64 * 1024
MAX_TIMEOUT_S = 3600
TOPIC = b"vllm_fault"
ACCEPTED_MESSAGE = "Request accepted; poll /fault_tolerance/status for updates."
EXECUTED_MESSAGE = "Instruction executed successfully."
FAILED_MESSAGE = "Failed to handle fault."

TimeoutS = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT_S)]


class Instruction(enum.StrEnum):
    """What can be asked of the instance."""

    RETRY = "retry"


# ---- what arrives


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which engine an instruction is for; none: the one that stands paused."""

    engine_id: int | None = None


class AwaitedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The original format: the answer comes when the instruction has ended."""

    fault_tolerance_instruction: str
    fault_tolerance_timeout: TimeoutS = 30.0
    fault_tolerance_params: Params = Params()


class AcceptedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The host's own format: the answer comes when the instruction is accepted."""

    instruction: str
    params: Params = Params()


@dataclass(frozen=True)
class ApplyCommand:
    """An instruction, whichever format it came in; `timeout_s` is set when its end is waited for."""

    instruction: Instruction
    engine_id: int | None
    timeout_s: float | None


_AWAITED_KEY = "fault_tolerance_instruction"
_ACCEPTED_KEY = "instruction"

T = TypeVar("T")


def parse_apply(body: bytes) -> ApplyCommand:
    """The instruction in a request's body. Raises `BadInstruction`."""
    fields = _parse_object(body)
    match _AWAITED_KEY in fields, _ACCEPTED_KEY in fields:
        case True, False:
            awaited = _convert(fields, AwaitedRequest)
            name, params = awaited.fault_tolerance_instruction, awaited.fault_tolerance_params
            return ApplyCommand(_known(name), params.engine_id, awaited.fault_tolerance_timeout)
        case False, True:
            accepted = _convert(fields, AcceptedRequest)
            return ApplyCommand(_known(accepted.instruction), accepted.params.engine_id, None)
        case True, True:
            raise BadInstruction(f"{_AWAITED_KEY!r} and {_ACCEPTED_KEY!r} are two formats", hint="send one of them")
    raise BadInstruction("the body names no instruction", hint=f"send {_ACCEPTED_KEY!r} or {_AWAITED_KEY!r}")


def parse_injection(body: bytes) -> InjectionSpec:
    """The fault to inject in a request's body. Raises `BadInstruction`."""
    return _convert(_parse_object(body), InjectionSpec)


def parse_after(text: str | None) -> int:
    """The sequence number of `?after=`, 0 when it is not given. Raises `BadInstruction`."""
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise BadInstruction("'after' must be a sequence number", hint="a whole number from 0 up")
    return int(text)


def is_json(content_type: str | None) -> bool:
    """Whether a Content-Type header names JSON."""
    return (content_type or "").partition(";")[0].strip().lower() == "application/json"


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInstruction(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadInstruction("the body must be a JSON object")
    return value


def _convert(fields: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise BadInstruction(f"bad field: {error}") from None


def _known(name: str) -> Instruction:
    try:
        return Instruction(name)
    except ValueError:
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise BadInstruction(f"unknown instruction {shown!r}", hint="known: " + ", ".join(Instruction)) from None


# ---- what leaves


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: the host's fields first, then ours."""

    id: int
    status: str
    fault_info: str | UnsetType = UNSET
    last_ft_request_id: str | UnsetType = UNSET
    ft_error: str | UnsetType = UNSET
    state: EngineState
    epoch: int
    ranks: int
    pid: int | None
    hooks: tuple[str, ...]
    worker_hooks: tuple[str, ...]
    reason: str | None
    recoveries: int
    faults: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The instance: the host's fields first, then ours."""

    schema_version: int = 1
    total_engines: int
    engines: tuple[EngineStatus, ...]
    policy: str
    ready: bool
    sequence: int
    notify_address: str
    defeat: str | UnsetType = UNSET


class Notification(Status, frozen=True, kw_only=True):
    """What subscribers get: the status after an event, and the event."""

    event: Event


class EventsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some events; `next` is the `after` that asks for the ones that follow."""

    events: tuple[Event, ...]
    next: int


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    ready: bool
    state: EngineState


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    message: str = EXECUTED_MESSAGE


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ACCEPTED_MESSAGE
    request_id: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, what to do, and the state in which it did."""

    message: str
    hint: str = ""
    state: str = ""
    detail: str = ""


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    error: Problem


def describe_problem(error: HoldfastError) -> Problem:
    """An error as a caller reads it."""
    state = error.state if isinstance(error, InstructionConflict) else ""
    return Problem(message=error.message, hint=error.hint, state=str(state))


def render_status(view: InstanceView) -> Status:
    """The status object of a view."""
    return Status(**_status_fields(view))


def render_notification(event: Event, view: InstanceView) -> Notification:
    """What is published about an event, with the instance after it."""
    return Notification(**_status_fields(view), event=event)


def render_readiness(view: InstanceView) -> Readiness:
    """Whether the instance makes progress, and the state it is in."""
    return Readiness(ready=view.ready, state=instance_state(view))


def instance_state(view: InstanceView) -> EngineState:
    """One state for all engines: dead when defeated, else that of the first engine that is not healthy."""
    if view.defeat is not None:
        return EngineState.DEAD
    unhealthy = (e.state for e in view.engines if not e.state.makes_progress)
    return next(unhealthy, EngineState.HEALTHY)


def _status_fields(view: InstanceView) -> dict[str, Any]:
    return {
        "total_engines": len(view.engines),
        "engines": tuple(_engine_status(e) for e in view.engines),
        "policy": view.fault_policy,
        "ready": view.ready,
        "sequence": view.sequence,
        "notify_address": view.notify_address,
        "defeat": _optional(view.defeat),
    }


def _engine_status(engine: EngineView) -> EngineStatus:
    return EngineStatus(
        id=engine.engine_id,
        status=engine.state.on_the_wire,
        fault_info=_optional(engine.fault.summary() if engine.fault else None),
        last_ft_request_id=_optional(engine.last_command_id),
        ft_error=_optional(engine.last_error),
        state=engine.state,
        epoch=engine.epoch,
        ranks=engine.ranks,
        pid=engine.pid,
        hooks=engine.hooks,
        worker_hooks=engine.worker_hooks,
        reason=engine.reason,
        recoveries=engine.recoveries,
        faults=engine.faults,
    )


def _optional(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text
