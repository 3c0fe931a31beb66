"""Incidents from the stream of events: one record for each fault, of a lockstep group or of a process beside it.

Pure, and beside every decision: takes events that were published, in order. Events may be missing; an incident then
ends with the next event that shows its engine cores healthy.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.policy.ladder import Action
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.incidents import (
    Incident,
    IncidentDecision,
    IncidentFault,
    IncidentRecovery,
    Outcome,
    PhaseSeconds,
    entry_of,
)
from holdfast.core.states import EngineState

MAX_FAULTS = 32
MAX_DECISIONS = 64
MAX_RECOVERIES = 128
MAX_TIMELINE = 256
MAX_TOLD = 64

_Key = tuple[int, ...] | str

_OPENING = (EventKind.FAULT_REPORTED, EventKind.RECOVERY_FAILED)
_NEVER_LAST = (*_OPENING, EventKind.ENGINE_ATTACHED)  # a replacement is attached before it is told to have returned
_FINDINGS = (EventKind.REQUESTS_SUSPECTED, EventKind.REQUEST_ENDED)


class IncidentRecords:
    """Open incidents of an instance. `instance` and `version` are copied into each record."""

    def __init__(self, instance: str = "", version: str = "") -> None:
        self._instance = instance
        self._version = version
        self._open: dict[_Key, Incident] = {}
        self._last: dict[_Key, Incident] = {}
        self._decided: dict[_Key, Event] = {}  # a decision on a lost engine core precedes the loss

    @property
    def open_ids(self) -> frozenset[str]:
        return frozenset(incident.incident_id for incident in self._open.values())

    def take(self, event: Event, view: InstanceView) -> list[Incident]:
        """Take an event. Return every incident that has changed."""
        if event.kind is EventKind.INSTANCE_DEFEATED:
            return self._defeat(event, view)
        key = _key_of(event, view)
        if key is None:
            return []
        incident = self._open.get(key) or (self._begin(key, event) if _opens(event) else None)
        if incident is None:
            return self._take_beside(key, event)
        return [self._keep(key, _closed_if_over(_with_event(incident, event), key, event, view))]

    def _begin(self, key: _Key, event: Event) -> Incident:
        decided = self._decided.pop(key, None)
        begun = self._new(key, event)
        return begun if decided is None else _with_event(begun, decided)

    def _new(self, key: _Key, event: Event) -> Incident:
        where = event.process or ("instance" if event.engine_id is None else f"engine{event.engine_id}")
        stamp = datetime.fromtimestamp(event.at, UTC).strftime("%Y%m%dT%H%M%S")
        return Incident(
            incident_id=f"{stamp}-{where.replace(' ', '-')}-{event.instance_id[:8]}-{event.sequence}",
            instance_id=event.instance_id,
            instance=self._instance,
            version=self._version,
            engines=() if isinstance(key, str) else key,
            process=event.process,
            opened_at=_noticed_at(event),
        )

    def _take_beside(self, key: _Key, event: Event) -> list[Incident]:
        """Take an event of a group without an open incident: findings about requests belong to the last incident."""
        self._decided.pop(key, None)
        if event.kind is EventKind.DECISION_MADE:
            self._decided[key] = event
        last = self._last.get(key)
        if event.kind not in _FINDINGS or last is None:
            return []
        self._last[key] = _with_event(last, event)
        return [self._last[key]]

    def _defeat(self, event: Event, view: InstanceView) -> list[Incident]:
        if not self._open:
            key = _key_of(event, view) or "instance"
            self._open[key] = self._begin(key, event)
        keys = list(self._open)
        return [self._keep(key, _closed(_with_event(self._open[key], event), event, Outcome.DEFEATED)) for key in keys]

    def _keep(self, key: _Key, incident: Incident) -> Incident:
        self._open.pop(key, None)
        told = msgspec.structs.replace(incident, next_step=next_step(incident))
        (self._open if told.outcome is Outcome.OPEN else self._last)[key] = told
        return told


# ---- events


def _key_of(event: Event, view: InstanceView) -> _Key | None:
    """Return the lockstep group or the process of an event, None for an event of the whole instance."""
    if event.process is not None:
        return event.process
    engine = None if event.engine_id is None else view.engine(event.engine_id)
    return None if engine is None else tuple(sorted({engine.engine_id, *engine.lockstep_with}))


def _opens(event: Event) -> bool:
    """Return whether an event tells of a fault. A restart that an operator ordered is none."""
    is_loss = event.kind in (EventKind.ENGINE_LOST, EventKind.PROCESS_LOST) and event.command_id is None
    return is_loss or event.kind in _OPENING


def _noticed_at(event: Event) -> float:
    return (event.fault.at if event.fault is not None else 0.0) or event.at


def _with_event(incident: Incident, event: Event) -> Incident:
    """Return an incident with an event of it."""
    left_out = incident.left_out
    timeline, left_out = _bounded(incident.timeline, entry_of(event), MAX_TIMELINE, left_out)
    changes: dict[str, object] = {"timeline": timeline}
    if event.fault is not None and event.kind in _OPENING:
        changes["faults"], left_out = _bounded(incident.faults, _fault_of(event.fault, event.at), MAX_FAULTS, left_out)
    if event.kind is EventKind.DECISION_MADE:
        decision = IncidentDecision(
            at=event.at, engine_id=event.engine_id, reason=event.reason or "", figures=event.decision
        )
        changes["decisions"], left_out = _bounded(incident.decisions, decision, MAX_DECISIONS, left_out)
        changes["action"] = event.decision.action if event.decision is not None else ""
    if event.engine_id is not None and event.interruption_s is not None:
        recovery = IncidentRecovery(
            at=event.at, engine_id=event.engine_id, interruption_s=event.interruption_s, report=event.report
        )
        changes["recoveries"], left_out = _bounded(incident.recoveries, recovery, MAX_RECOVERIES, left_out)
    if event.kind is EventKind.REQUEST_ENDED and event.incident is not None:
        changes["told_as"], left_out = _bounded(incident.told_as, event.incident, MAX_TOLD, left_out)
        changes["requests_failed"] = incident.requests_failed + 1
    if event.report is not None:
        report = event.report
        changes["requests_rewound"] = incident.requests_rewound + report.requests
        changes["requests_failed"] = incident.requests_failed + report.failed_requests
        changes["tokens_recomputed"] = incident.tokens_recomputed + report.tokens_to_recompute
    if event.interruption_s is not None:
        changes["interruption_s"] = max(event.interruption_s, incident.interruption_s or 0.0)
    return _explained(msgspec.structs.replace(incident, left_out=left_out, **changes))


def _bounded(known: tuple, news: object, limit: int, left_out: int) -> tuple[tuple, int]:  # type: ignore[type-arg]
    """Return a sequence with another item as long as there is room, and how many items were left out so far."""
    return ((*known, news), left_out) if len(known) < limit else (known, left_out + 1)


def _fault_of(fault: Fault, at: float) -> IncidentFault:
    about = {name: getattr(fault, name) for name in IncidentFault.__struct_fields__ if name not in ("at", "stack")}
    return IncidentFault(at=fault.at or at, stack=() if fault.stack is UNSET else fault.stack, **about)


# ---- what follows from the events


def _explained(incident: Incident) -> Incident:
    """Return an incident with its cause and its phases, as far as events tell them."""
    return msgspec.structs.replace(incident, cause=_cause(incident), phases=_phases(incident))


def _cause(incident: Incident) -> str:
    """Return the root cause in words: peers of the failed rank only report a broken collective."""
    own = [f for f in incident.faults if f.fault_class is not FaultClass.COMMUNICATOR]
    for fault in (*own, *incident.faults):
        where = f"engine {fault.engine_id}" + ("" if fault.rank is None else f", rank {fault.rank}")
        phase = f" at {fault.phase}" if fault.phase else ""
        return f"{fault.error_type} in {where}{phase}: {fault.message}"
    lost = (EventKind.ENGINE_LOST, EventKind.PROCESS_LOST, EventKind.INSTANCE_DEFEATED)
    return next((entry.text for entry in incident.timeline if entry.kind in lost), "")


def _phases(incident: Incident) -> PhaseSeconds:
    started_at = _first(incident, EventKind.RECOVERY_STARTED)
    before = [e for e in incident.timeline if started_at is None or e.at <= started_at]
    paused = [e.at for e in before if e.kind is EventKind.ENGINE_PAUSED]
    paused_at = max(paused) if paused else None
    decided_at = next((d.at for d in incident.decisions if paused_at is None or d.at >= paused_at), None)
    reports = [r.report for r in incident.recoveries if r.report is not None]
    replaced = [r.interruption_s for r in incident.recoveries if r.report is None]
    repairs = [r.drain_s + r.rewind_s + r.replace_s + r.rebuild_s for r in reports] + replaced
    return PhaseSeconds(
        contain=_between(incident.opened_at, paused_at),
        decide=_between(paused_at, decided_at),
        repair=max(repairs, default=None),
        restore=max((r.restore_s for r in reports), default=None),
    )


def _first(incident: Incident, kind: EventKind) -> float | None:
    return next((entry.at for entry in incident.timeline if entry.kind is kind), None)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else round(max(0.0, end - begin), 6)


def _closed_if_over(incident: Incident, key: _Key, event: Event, view: InstanceView) -> Incident:
    if isinstance(key, str):
        return _closed(incident, event, Outcome.REPAIRED) if event.kind is EventKind.PROCESS_RESTARTED else incident
    states = [engine.state for engine in view.engines if engine.engine_id in key]
    if states and all(state is EngineState.LEFT_OUT for state in states):
        return _closed(incident, event, Outcome.LEFT_OUT)
    is_over = event.kind not in _NEVER_LAST and states and all(state is EngineState.HEALTHY for state in states)
    return _closed(incident, event, Outcome.REPAIRED) if is_over else incident


def _closed(incident: Incident, event: Event, outcome: Outcome) -> Incident:
    return msgspec.structs.replace(incident, closed_at=event.at, outcome=outcome)


# ---- what to do next

_AFTER_REPAIR = {
    FaultClass.DEVICE: "check the device of this rank (`nvidia-smi -q`, `dmesg` for XIDs); replace it if this repeats",
    FaultClass.WORKER_LOST: "find out why the process ended: kernel log, memory limits, other users of the machine",
    FaultClass.UNRESPONSIVE: "read the stacks of this incident: they say where the process hung",
    FaultClass.NUMERICAL: "check weights and quantization if this repeats; the requests were computed again",
}
_NOTHING = "no action is needed; report the error with `holdfast incidents export` if this repeats"


def next_step(incident: Incident) -> str:
    """Return what an operator does next about an incident, in one line."""
    engines = " ".join(f"--engine {engine_id}" for engine_id in incident.engines[:1])
    match incident.outcome:
        case Outcome.DEFEATED:
            return "start the server again; read the cause first, as a repair was tried and did not last"
        case Outcome.LEFT_OUT:
            return f"the engine core is started again later; `holdfast apply restart-engine {engines}` starts it now"
        case Outcome.OPEN:
            if incident.action == Action.AWAIT:
                return f"the instance waits for a command: `holdfast apply retry {engines}`"
            return "wait: a repair is under way; `holdfast events --follow` shows each step"
    causes = [f.fault_class for f in incident.faults if f.fault_class is not FaultClass.COMMUNICATOR]
    return next((step for c in causes if (step := _AFTER_REPAIR.get(c))), _NOTHING)


def newest_first(incidents: Iterable[Incident]) -> list[Incident]:
    """Return incidents by number, and by time where numbers are equal, the newest first."""
    return sorted(incidents, key=lambda i: (i.number, i.opened_at, i.incident_id), reverse=True)
