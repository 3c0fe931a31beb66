"""The log: one line per event, for people who read the server's output."""

from __future__ import annotations

import logging

from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import RecoveryReport

logger = logging.getLogger("holdfast")

_WORTH_SAYING_S = 0.001  # a recovery that had nothing to rebuild finds that out in less


def log_event(event: Event, view: InstanceView) -> None:
    """Log an event."""
    logger.log(_level(event), describe_event(event))


def describe_event(event: Event) -> str:
    """Return the log line of an event."""
    if event.kind is EventKind.CONFIGURED:
        return f"settings changed: {event.reason} (command {event.command_id})"
    return _describe_process(event) if event.process is not None else _describe_engine(event)


def _describe_engine(event: Event) -> str:  # noqa: PLR0912 - one line for each kind of event
    engine = f"engine {event.engine_id}"
    cause = event.fault.summary() if event.fault else "no cause given"
    match event.kind:
        case EventKind.ENGINE_ATTACHED:
            return f"{engine} is protected"
        case EventKind.FAULT_REPORTED:
            return f"{engine} faulted: {cause}"
        case EventKind.PAUSE_ORDERED:
            return f"{engine} is told to pause: {event.reason} (command {event.command_id})"
        case EventKind.ENGINE_PAUSED:
            return f"{engine} is paused"
        case EventKind.DECISION_MADE:
            return _describe_decision(engine, event)
        case EventKind.ENGINE_LOST:
            return f"{engine}: {event.reason}"
        case EventKind.RECOVERY_STARTED:
            return f"{engine} recovering, epoch {event.epoch} (command {event.command_id})"
        case EventKind.ENGINE_RECOVERED:
            return f"{engine} recovered after {event.interruption_s or 0.0:.3f} s: {_describe_report(event.report)}"
        case EventKind.RECOVERY_FAILED:
            return f"{engine} did not recover: {cause}"
        case EventKind.FAULT_ARMED:
            return f"{engine} has a fault armed (command {event.command_id})"
        case EventKind.ENGINE_RESTARTED:
            return (
                f"{engine} is another process and takes load again, {event.interruption_s or 0.0:.1f} s after its loss"
            )
        case EventKind.STANDBYS_CHANGED:
            return f"{engine}: standby workers: {event.reason}"
        case EventKind.REQUESTS_SUSPECTED | EventKind.REQUEST_ENDED:
            return f"{engine}: {_describe_suspicion(event)}"
    return _describe_process(event)


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


def _level(event: Event) -> int:
    match event.kind:
        case EventKind.INSTANCE_DEFEATED | EventKind.RECOVERY_FAILED | EventKind.ENGINE_LOST | EventKind.PROCESS_LOST:
            return logging.ERROR
        case EventKind.FAULT_REPORTED | EventKind.PAUSE_ORDERED | EventKind.ENGINE_PAUSED | EventKind.FAULT_ARMED:
            return logging.WARNING
        case EventKind.REQUESTS_SUSPECTED | EventKind.REQUEST_ENDED | EventKind.CONFIGURED:
            return logging.WARNING
    return logging.INFO
