"""Texts of the control endpoints, the PUB socket and the log: status, events, answers, errors.

Pure: views in, structs and lines out. Nothing here knows a web framework.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from holdfast.core.config import RuntimeSettings
from holdfast.core.errors import CommandConflict, HoldfastError
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.known_sentences import HELD_BACK
from holdfast.core.faults.redaction import WITHHELD
from holdfast.core.poison.memory import SHOWN_CHARS, GuiltKind, Remembered
from holdfast.core.protocol.events import EngineStatus, Event, EventKind, FullText, InstanceView, ProcessStatus
from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.states import EngineState

TOPIC = b"vllm_fault"
ACCEPTED_MESSAGE = "Request accepted; poll /fault_tolerance/status for updates."
EXECUTED_MESSAGE = "Instruction executed successfully."
FAILED_MESSAGE = "Failed to handle fault."

_WORTH_SAYING_S = 0.001  # a recovery that had nothing to rebuild finds that out in less


class RememberedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request or adapter that was found guilty. `fingerprint` is the beginning; `until` ends refusal or trial."""

    fingerprint: str
    kind: GuiltKind
    incident: str
    refused: bool
    refusals: int
    until: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the instance: the host's fields first, then ours."""

    schema_version: int = 1
    instance_id: str
    total_engines: int
    engines: tuple[EngineStatus, ...]
    policy: str
    ready: bool
    sequence: int
    notify_address: str
    settings: RuntimeSettings
    defeat: str | UnsetType = UNSET
    processes: tuple[ProcessStatus, ...] = ()
    dropped: dict[str, int] = {}
    remembered: tuple[RememberedRequest, ...] = ()
    full_texts: tuple[FullText, ...] | UnsetType = UNSET


class Notification(Status, frozen=True, kw_only=True):
    """Notification of an event: the event, and the status after the event."""

    event: Event


class EventsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some events; `next` is the `after` that asks for the ones that follow.

    `restarted`: the caller asked about another instance, so that the events are those of this one from the first.
    """

    instance_id: str
    events: tuple[Event, ...]
    next: int
    restarted: bool = False


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    ready: bool
    state: EngineState
    reason: str = ""


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


def render_status(view: InstanceView, *, with_full_texts: bool = False) -> Status:
    """Return the status of a view; with full texts only for a caller who asks for them."""
    return Status(**_status_fields(view), full_texts=view.full_texts if with_full_texts else UNSET)


def render_notification(event: Event, view: InstanceView) -> Notification:
    """Return the notification of an event, with the status after the event."""
    return Notification(**_status_fields(view), event=event.without_stack())


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
        "instance_id": view.instance_id,
        "total_engines": len(view.engines),
        "engines": view.engines,
        "policy": view.settings.fault_policy,
        "ready": view.ready,
        "sequence": view.sequence,
        "notify_address": view.notify_address,
        "settings": view.settings,
        "defeat": UNSET if view.defeat is None else view.defeat,
        "processes": view.processes,
        "dropped": view.dropped,
        "remembered": tuple(map(_remembered, view.guilt.entries)),
    }


def _remembered(entry: Remembered) -> RememberedRequest:
    return RememberedRequest(
        fingerprint=entry.fingerprint[:SHOWN_CHARS],
        kind=entry.kind,
        incident=entry.incident,
        refused=entry.is_refused,
        refusals=entry.refusals,
        until=entry.until,
    )


# ---- the log: one line per event

_OF_GUILT = (EventKind.REQUEST_REMEMBERED, EventKind.REQUEST_REFUSED, EventKind.REQUEST_FORGOTTEN)


def describe_event(event: Event) -> str:
    """Return the log line of an event."""
    if event.kind is EventKind.CONFIGURED:
        return f"settings changed: {event.reason}{_command(event)}"
    if event.kind in _OF_GUILT:
        return f"{event.reason} (incident {event.incident})"
    return _describe_process(event) if event.process is not None else _describe_engine(event)


def _describe_engine(event: Event) -> str:  # noqa: PLR0912 - one line for each kind of event
    engine = f"engine {event.engine_id}"
    cause = _cause(event.fault) if event.fault else "no cause given"
    match event.kind:
        case EventKind.ENGINE_ATTACHED:
            return f"{engine} is protected"
        case EventKind.FAULT_REPORTED:
            return f"{engine} faulted: {cause}"
        case EventKind.PAUSE_ORDERED:
            return f"{engine} is told to pause: {event.reason}{_command(event)}"
        case EventKind.ENGINE_PAUSED:
            return f"{engine} is paused"
        case EventKind.DECISION_MADE:
            return _describe_decision(engine, event)
        case EventKind.ENGINE_LOST:
            return f"{engine}: {event.reason}{_command(event)}"
        case EventKind.RECOVERY_STARTED:
            return f"{engine} recovering, epoch {event.epoch}{_command(event)}"
        case EventKind.ENGINE_RECOVERED:
            return f"{engine} recovered after {event.interruption_s or 0.0:.3f} s: {_describe_report(event.report)}"
        case EventKind.RECOVERY_FAILED:
            return f"{engine} did not recover: {cause}"
        case EventKind.FAULT_ARMED:
            return f"{engine} has a fault armed{_command(event)}"
        case EventKind.ENGINE_RESTARTED:
            return (
                f"{engine} is another process and takes load again, {event.interruption_s or 0.0:.1f} s after its loss"
            )
        case EventKind.STANDBYS_CHANGED:
            return f"{engine}: standby workers: {event.reason}"
        case EventKind.REQUESTS_SUSPECTED | EventKind.REQUEST_ENDED:
            return f"{engine}: {_describe_suspicion(event)}"
    return _describe_process(event)


def _command(event: Event) -> str:
    """Return the command of an event in brackets, with the giver of a command that an operator gave."""
    if event.command_id is None:
        return ""
    giver = event.given_by
    if giver is None:
        return f" (command {event.command_id})"
    peer = giver.address or ("an unknown address" if giver.uid is None else f"user {giver.uid}")
    key = f", idempotency key {giver.idempotency_key}" if giver.idempotency_key else ""
    return f" (command {event.command_id}, given from {peer} by {giver.credential}{key})"


def _cause(fault: Fault) -> str:
    held_back = WITHHELD in fault.message or HELD_BACK in fault.message
    return fault.summary() + ("; `holdfast status --full-texts` shows the whole text" if held_back else "")


def _describe_decision(engine: str, event: Event) -> str:
    """Return the audit line: the reason in words, then keys and values for programs."""
    record = f" [{event.decision} epoch={event.epoch}]" if event.decision is not None else ""
    return f"{engine}: {event.reason}{record}"


def _describe_suspicion(event: Event) -> str:
    if event.kind is EventKind.REQUESTS_SUSPECTED:
        return f"{event.reason} ({event.suspects} suspected)"
    return f"request {event.request_id!r} is ended with an error (incident {event.incident}): {event.reason}"


def _describe_process(event: Event) -> str:
    if event.kind is EventKind.PROCESS_ATTACHED:
        return f"{event.process} is watched"
    if event.kind is EventKind.PROCESS_RESTARTED:
        return f"{event.process} is another process, {event.interruption_s or 0.0:.1f} s after its loss"
    return f"giving up: {event.reason}" if event.kind is EventKind.INSTANCE_DEFEATED else str(event.reason)


def _describe_report(report: RecoveryReport | None) -> str:
    if report is None:
        return "no report"
    parts = [
        f"{report.requests} requests rewound",
        f"{report.kept_blocks} blocks kept",
        f"{report.evicted_blocks} evicted",
        f"{report.tokens_to_recompute} tokens to compute again",
    ]
    if report.rebuild_s >= _WORTH_SAYING_S:
        parts.append(f"collectives rebuilt in {report.rebuild_s:.3f} s")
    if report.replaced_ranks:
        parts.insert(0, _describe_replacement(report))
    if report.salvaged_outputs:
        parts.append(f"{report.salvaged_outputs} outputs salvaged")
    if report.failed_requests:
        parts.append(f"{report.failed_requests} requests failed")
    return ", ".join(parts)


def _describe_replacement(report: RecoveryReport) -> str:
    ranks = ", ".join(str(rank) for rank in report.replaced_ranks)
    standbys = f" ({report.standbys_used} from standby)" if report.standbys_used else ""
    return f"new process for rank {ranks} in {report.replace_s:.1f} s{standbys}"


def log_level(event: Event) -> int:
    """Return the level of an event's log line."""
    match event.kind:
        case EventKind.INSTANCE_DEFEATED | EventKind.RECOVERY_FAILED | EventKind.ENGINE_LOST | EventKind.PROCESS_LOST:
            return logging.ERROR
        case EventKind.FAULT_REPORTED | EventKind.PAUSE_ORDERED | EventKind.ENGINE_PAUSED | EventKind.FAULT_ARMED:
            return logging.WARNING
        case EventKind.REQUESTS_SUSPECTED | EventKind.REQUEST_ENDED | EventKind.CONFIGURED:
            return logging.WARNING
        case EventKind.REQUEST_REMEMBERED | EventKind.REQUEST_REFUSED:
            return logging.WARNING
    return logging.INFO
