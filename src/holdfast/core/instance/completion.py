"""Completion: finish the recovery of a lockstep group, and close the incident or decide again."""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, deeper
from holdfast.core.instance.containment import contain, record_fault
from holdfast.core.instance.decision import decide_once_paused
from holdfast.core.instance.event_log import publish
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.repair import close_rendezvous
from holdfast.core.instance.state import InstanceState
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState, Trigger


def engine_recovered(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EngineRecovered, now: float
) -> list[Effect]:
    """Take the report that an engine core has recovered."""
    if not _answers(fact, group, engine):
        return []
    engine.move(Trigger.RECOVERED)
    engine.fault = engine.last_error = None
    engine.recoveries += 1
    engine.worker_pids = fact.worker_pids or engine.worker_pids
    engine.worker_restarts += len(fact.report.replaced_ranks)
    engine.sick_ranks.clear()
    recovered = publish(
        state,
        EventKind.ENGINE_RECOVERED,
        group,
        engine,
        command_id=fact.command_id,
        report=fact.report,
        interruption_s=now - group.opened_at,
    )
    # A peer may have failed in the meantime. Then this engine core must pause until the last peer is done.
    return [recovered, *contain(state, group, now), *finish_recovery(state, group, now)]


def recovery_aborted(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.RecoveryAborted, now: float
) -> list[Effect]:
    """Take the report that the recovery of an engine core has failed."""
    return recovery_failed(state, group, engine, fact.fault, now) if _answers(fact, group, engine) else []


def recovery_failed(
    state: InstanceState, group: LockstepGroup, engine: Engine, fault: Fault, now: float
) -> list[Effect]:
    """Record the failed recovery of an engine core in the incident, as a fault."""
    fault = deeper(engine.fault_in_recovery, fault)
    engine.move(Trigger.RECOVERY_FAILED)
    engine.fault, engine.fault_in_recovery = fault, None
    engine.last_error = fault.summary()
    engine.faults += 1
    engine.note_sick_rank(fault)
    incident = group.open_incident(now)
    incident.deepen(fault)
    incident.collectives_broken = True
    failed = publish(state, EventKind.RECOVERY_FAILED, group, engine, command_id=group.last_command_id, fault=fault)
    effects = [failed, *close_rendezvous(group)]
    return effects + contain(state, group, now) + finish_recovery(state, group, now)


def finish_recovery(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Finish the recovery of a group after the last engine core has reported.

    Close the incident if every engine core is healthy. Otherwise decide again as soon as every engine core is paused.
    """
    incident, recovery = group.incident, group.recovery
    if incident is None or recovery is None or group.in_state(EngineState.RECOVERING):
        return []
    if len(group.in_state(EngineState.HEALTHY)) == len(group.engines):
        group.incident = None
        settled = state.commands.end_in_group(recovery.command_id, group.group_id)
        return settled + finish_engine_restarts(state, group) + _take_later_faults(state, group, now)
    incident.recovery = None
    has_failed = any(e.last_error for e in group.engines)
    if recovery.replaces_workers and has_failed:  # a single failure, however many engine cores report it
        incident.failed_restarts += 1
    error = incident.fault.summary() if incident.fault is not None else "an engine core is paused again"
    # If every engine core has recovered, a fault since then does not fail the command.
    settled = state.commands.end_in_group(recovery.command_id, group.group_id, error if has_failed else None)
    return settled + _take_later_faults(state, group, now) + decide_once_paused(state, group, now)


def finish_engine_restarts(state: InstanceState, group: LockstepGroup) -> list[Effect]:
    """End the operator's commands to replace engine cores of a group as successful."""
    effects: list[Effect] = []
    for engine in group.engines:
        effects += state.commands.end_in_group(engine.restart_command, group.group_id)
        engine.restart_command = None
    return effects


def _take_later_faults(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Record the faults of recovered engine cores whose report overtook the report of the recovery."""
    effects: list[Effect] = []
    for engine in group.engines:
        fault, engine.fault_in_recovery = engine.fault_in_recovery, None
        if fault is not None:
            engine.begin_to_stop(Trigger.FAULT, now)
            effects += record_fault(state, group, engine, fault, now)
    return effects + contain(state, group, now)


def _answers(fact: m.EngineRecovered | m.RecoveryAborted, group: LockstepGroup, engine: Engine) -> bool:
    """Return whether a report is about the recovery under way."""
    is_under_way = group.recovery is not None and group.recovery.command_id == fact.command_id
    return is_under_way and fact.epoch == group.epoch and engine.state is EngineState.RECOVERING
