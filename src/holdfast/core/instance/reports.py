"""Reports of engine cores: detection, which begins or deepens an incident, and completion, which ends an incident.

Must never raise: reports may be late, lost, repeated or out of order.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.core.faults.faults import Fault, FaultClass, deeper, unresponsive
from holdfast.core.instance.group import STOPPING, Engine, LockstepGroup
from holdfast.core.instance.repair import (
    close_rendezvous,
    contain,
    decide_and_repair,
    decide_once_paused,
    pause_replacement,
    record_fault,
)
from holdfast.core.instance.state import InstanceState, publish
from holdfast.core.poison.detector import FAULTS_BEFORE_SEARCH
from holdfast.core.policy.incident import Incident
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Settle
from holdfast.core.protocol.events import EventKind
from holdfast.core.protocol.link_messages import PoisonRequestEnded
from holdfast.core.states import EngineState, Trigger

# ---- an engine core has attached


def engine_attached(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EngineAttached, now: float
) -> list[Effect]:
    """Take the first report of an engine core's process. In lockstep, a replacement stays paused until it may join."""
    if engine.pid is not None:
        return []
    is_replacement = engine.state is EngineState.RESTARTING
    has_to_join = is_replacement and group.is_lockstep
    if engine.state in (EngineState.STARTING, EngineState.RESTARTING):  # else the report of a fault came first
        engine.move(Trigger.ATTACHED)
    if has_to_join:  # such a process starts paused
        engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
    _note_process(engine, fact)
    paused: list[Effect] = []
    if is_replacement and not has_to_join and group.is_paused_by_operator:
        # Before the event is published: the front end must not send requests to this engine core.
        paused = pause_replacement(state, group, engine, now)
    attached = publish(state, EventKind.ENGINE_ATTACHED, group, engine)
    return [*paused, attached, *contain(state, group, now)]


def _note_process(engine: Engine, fact: m.EngineAttached) -> None:
    engine.pid, engine.hooks, engine.ranks = fact.pid, fact.hooks, len(fact.workers)
    engine.worker_pids = tuple(w.pid for w in fact.workers if w.node == 0)  # others are not of this system
    engine.pipeline_stages = fact.pipeline_stages
    common = set.intersection(*(set(w.hooks) for w in fact.workers)) if fact.workers else set()
    engine.worker_hooks = tuple(sorted(common))
    of_workers = (what for w in fact.workers for what in w.unrebuildable)
    engine.unrebuildable = tuple(dict.fromkeys((*fact.unrebuildable, *of_workers)))


# ---- detection of a fault


def engine_faulted(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EngineFaulted, now: float
) -> list[Effect]:
    """Record a fault and pause the peers. Decide at once if the group is paused, or the engine core is silent."""
    fault = fact.fault
    if fact.epoch != group.epoch or group.is_expected(fault):
        return []
    if engine.state is EngineState.RECOVERING:
        # The report may have overtaken the report that the recovery succeeded: kept until the recovery is over. If
        # the recovery fails, a peer that waits for this rank at the rendezvous would wait in vain.
        engine.move(Trigger.FAULT)
        engine.fault_in_recovery = deeper(engine.fault_in_recovery, fault)
        return close_rendezvous(group)
    engine.begin_to_stop(Trigger.FAULT, now)
    effects = record_fault(state, group, engine, fault, now) + contain(state, group, now)
    if group.in_state(EngineState.RECOVERING):
        effects += close_rendezvous(group)  # this engine core had recovered and has failed again
    is_silent = fault.fault_class is FaultClass.UNRESPONSIVE and fault.rank is None
    if group.fault is fault and (group.is_paused or is_silent):
        # An engine core that does not answer will not pause either.
        effects += decide_and_repair(state, group, now)
    return effects


def engine_paused(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EnginePaused, now: float
) -> list[Effect]:
    """Take the report that an engine core is paused. The repair is decided once all engine cores of the group are."""
    if fact.epoch != group.epoch:
        return []
    engine.progressed = fact.progressed
    if engine.state in (EngineState.PAUSED, EngineState.RECOVERING):
        return _paused_again(state, group, engine, fact, now)
    if engine.state not in STOPPING:
        engine.move(Trigger.FAULT)
    effects = [] if fact.fault is None else record_fault(state, group, engine, fact.fault, now)
    _note_findings(group.open_incident(now), fact)
    engine.move(Trigger.PAUSED)
    paused = publish(state, EventKind.ENGINE_PAUSED, group, engine, fault=engine.fault)
    return [*effects, paused, *contain(state, group, now), *decide_once_paused(state, group, now)]


def _paused_again(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EnginePaused, now: float
) -> list[Effect]:
    _note_findings(group.open_incident(now), fact)
    if engine.state is EngineState.PAUSED:
        return []
    # The engine core had recovered in this epoch and is paused again; the report how the recovery ended was lost.
    fault = fact.fault or unresponsive(engine.engine_id, "paused again without a report on its recovery")
    return recovery_failed(state, group, engine, fault, now)


def _note_findings(incident: Incident, fact: m.EnginePaused) -> None:
    incident.collectives_broken |= fact.broken
    incident.search_progressed |= fact.search_progressed
    incident.clears_rank |= fact.clears_rank


# ---- completion of a recovery


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
        if recovery.replaces_workers:
            group.budgets.fruitless = group.budgets.fruitless.after_worker_restart()
        settled = state.commands.end_in_group(recovery.command_id, group.group_id)
        return settled + finish_engine_restarts(state, group, group.engines) + _take_later_faults(state, group, now)
    incident.recovery = None
    has_failed = any(e.last_error for e in group.engines)
    if recovery.replaces_workers and has_failed:  # a single failure, however many engine cores report it
        incident.failed_restarts += 1
    # If every engine core has recovered, a fault since then does not fail the command.
    error = incident.fault.summary() if has_failed and incident.fault is not None else None
    settled = state.commands.end_in_group(recovery.command_id, group.group_id, error)
    return settled + _take_later_faults(state, group, now) + decide_once_paused(state, group, now)


def finish_engine_restarts(state: InstanceState, group: LockstepGroup, engines: Iterable[Engine]) -> list[Effect]:
    """End the operator's commands to replace some engine cores of a group as successful."""
    effects: list[Effect] = []
    for engine in engines:
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


# ---- requests, standbys, injected faults


def requests_suspected(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.RequestsSuspected
) -> list[Effect]:
    """Take the report how many requests are suspected to be poison requests."""
    if fact.epoch != group.epoch:
        return []
    engine.suspects = fact.suspects
    return [publish(state, EventKind.REQUESTS_SUSPECTED, group, engine, reason=fact.reason, suspects=fact.suspects)]


def request_ended(state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.RequestEnded) -> list[Effect]:
    """Take the report that an engine core has ended a poison request. Refund the tries before the search."""
    if fact.epoch != group.epoch:
        return []
    group.budgets.refund(FAULTS_BEFORE_SEARCH)
    return _publish_ended_request(state, group, engine, fact)


def poison_request_ended(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: PoisonRequestEnded
) -> list[Effect]:
    """Take the report of an API server that has ended a request which every engine core dies of."""
    return _publish_ended_request(state, group, engine, fact)


def _publish_ended_request(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.RequestEnded | PoisonRequestEnded
) -> list[Effect]:
    engine.ended_requests += 1
    about = {"request_id": fact.request_id, "incident": fact.incident, "reason": fact.reason}
    return [publish(state, EventKind.REQUEST_ENDED, group, engine, **about)]


def runtime_state_changed(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.RuntimeStateChanged
) -> list[Effect]:
    """Keep the state that callers set at run time for a replacement, and tell what a replacement would lose."""
    is_news = fact.unrepeatable != engine.unrepeatable_state
    engine.runtime_state, engine.unrepeatable_state = fact.calls, fact.unrepeatable
    if not is_news:
        return []
    reason = f"a new process would lose {fact.unrepeatable or 'nothing'}"
    return [publish(state, EventKind.RUNTIME_STATE_CHANGED, group, engine, reason=reason)]


def standbys_changed(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.StandbysChanged
) -> list[Effect]:
    """Take the report how many standby processes are ready."""
    engine.standbys = fact.standbys
    return [publish(state, EventKind.STANDBYS_CHANGED, group, engine, reason=str(engine.standbys))]


def arming_answered(state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.EngineAnswered) -> list[Effect]:
    """Take the answer to a command to arm a fault."""
    if engine.armed.pop(fact.command_id, None) is None:
        return []
    settled = Settle(fact.command_id, error=fact.refused, refused=fact.refused is not None)
    if fact.refused is not None:
        return [settled]
    return [publish(state, EventKind.FAULT_ARMED, group, engine, command_id=fact.command_id), settled]
