"""What the control endpoints and the PUB socket say: status, events, answers, errors.

Pure: views in, structs out. Nothing here knows a web framework.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from holdfast.core.config import RuntimeSettings
from holdfast.core.errors import CommandConflict, HoldfastError
from holdfast.core.protocol.events import EngineStatus, Event, InstanceView, ProcessStatus
from holdfast.core.states import EngineState

TOPIC = b"vllm_fault"
ACCEPTED_MESSAGE = "Request accepted; poll /fault_tolerance/status for updates."
EXECUTED_MESSAGE = "Instruction executed successfully."
FAILED_MESSAGE = "Failed to handle fault."


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the instance: the host's fields first, then ours."""

    schema_version: int = 1
    total_engines: int
    engines: tuple[EngineStatus, ...]
    policy: str
    ready: bool
    sequence: int
    notify_address: str
    settings: RuntimeSettings
    defeat: str | UnsetType = UNSET
    processes: tuple[ProcessStatus, ...] = ()


class Notification(Status, frozen=True, kw_only=True):
    """Notification of an event: the event, and the status after the event."""

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
    """Error of a call: message, hint, and the state of the engine."""

    message: str
    hint: str = ""
    state: str = ""
    detail: str = ""


class ProblemBody(msgspec.Struct, frozen=True, kw_only=True):
    error: Problem


def describe_problem(error: HoldfastError) -> Problem:
    """Return the problem that describes an error to a caller."""
    state = error.state if isinstance(error, CommandConflict) else ""
    return Problem(message=error.message, hint=error.hint, state=str(state))


def render_status(view: InstanceView) -> Status:
    """Return the status of a view."""
    return Status(**_status_fields(view))


def render_notification(event: Event, view: InstanceView) -> Notification:
    """Return the notification of an event, with the status after the event."""
    return Notification(**_status_fields(view), event=event)


def render_readiness(view: InstanceView) -> Readiness:
    """Return whether the instance makes progress, and the state of the instance."""
    return Readiness(ready=view.ready, state=instance_state(view))


def instance_state(view: InstanceView) -> EngineState:
    """Return one state for all engines: dead after a defeat, else the state of the first unhealthy engine."""
    if view.defeat is not None:
        return EngineState.DEAD
    unhealthy = (e.state for e in view.engines if not e.state.makes_progress)
    return next(unhealthy, EngineState.HEALTHY)


def _status_fields(view: InstanceView) -> dict[str, Any]:
    return {
        "total_engines": len(view.engines),
        "engines": view.engines,
        "policy": view.settings.fault_policy,
        "ready": view.ready,
        "sequence": view.sequence,
        "notify_address": view.notify_address,
        "settings": view.settings,
        "defeat": UNSET if view.defeat is None else view.defeat,
        "processes": view.processes,
    }
