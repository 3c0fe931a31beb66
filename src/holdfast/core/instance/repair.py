"""From a recorded fault to the repair: contain the lockstep group, decide, and carry out the decision.

Callers have checked the preconditions. The requests of a lost engine core are not handled here: the front end sees in
the view that an engine core was lost, and moves its requests.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass, deeper
from holdfast.core.instance.deadlines import replacement_bound_s
from holdfast.core.instance.defeat import end_instance
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.state import InstanceState, fail_armings, publish
from holdfast.core.poison.named import named_by
from holdfast.core.policy.incident import (
    Fruitless,
    Recovery,
    Situation,
    engine_restart_intensity,
    retry_intensity,
    unknown_retry_intensity,
    worker_restart_intensity,
)
from holdfast.core.policy.ladder import Action, Decision, decide_repair, decide_wait
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import (
    BeginRecovery,
    CloseRendezvous,
    Effect,
    LeaveOut,
    Publish,
    ReplaceEngine,
    Send,
)
from holdfast.core.protocol.events import DecisionRecord, EventKind
from holdfast.core.states import EngineState, Trigger

# ---- containment


def record_fault(state: InstanceState, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
    """Record a fault in the incident of a group. Publish the fault if it is deeper, or a separate cause."""
    if group.is_expected(fault):
        return []
    is_first = group.incident is None
    incident = group.open_incident(now)
    is_own_cause = engine.fault is None and (is_first or fault.fault_class is not FaultClass.COMMUNICATOR)
    engine.faults += is_own_cause
    engine.fault = deeper(engine.fault, fault)
    engine.note_sick_rank(fault)
    is_news = incident.deepen(fault) or is_own_cause
    return [publish(state, EventKind.FAULT_REPORTED, group, engine, fault=fault)] if is_news else []


def contain(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Pause the healthy engine cores of a group in which a peer has stopped, so that none waits forever."""
    stopped = group.in_state(EngineState.FAULTED, EngineState.PAUSED, EngineState.RESTARTING)
    if not stopped:
        return []
    reason = f"engine {stopped[0].engine_id} of the same lockstep group has stopped"
    effects: list[Effect] = []
    for engine in group.in_state(EngineState.HEALTHY):
        order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch)
        effects += pause(state, group, engine, order, reason, now)
    return effects


def pause(
    state: InstanceState, group: LockstepGroup, engine: Engine, order: m.PauseEngine, reason: str, now: float
) -> list[Effect]:
    """Order an engine core of a group to pause. A hard pause breaks collectives."""
    engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
    group.open_incident(now).collectives_broken |= not order.soft
    ordered = publish(state, EventKind.PAUSE_ORDERED, group, engine, command_id=order.command_id, reason=reason)
    return [Send(engine.engine_id, order), ordered]


def pause_replacement(state: InstanceState, group: LockstepGroup, engine: Engine, now: float) -> list[Effect]:
    """Pause the replacement of an engine core that was paused by an operator."""
    incident = group.open_incident(now)
    incident.is_soft = True  # a new process has no step under way that would have to be broken
    order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch, soft=True)
    return pause(state, group, engine, order, "paused by operator before this process replaced another", now)


def make_pause_hard(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Order the engine cores of a group that is being paused softly to pause at once."""
    incident = group.open_incident(now)
    incident.is_soft, incident.collectives_broken = False, True
    order = m.PauseEngine(command_id=state.new_command_id(), epoch=group.epoch)
    return [Send(engine_id, order) for engine_id in group.engine_ids]


def send_keepalives(group: LockstepGroup, now: float) -> list[Effect]:
    """Tell the paused engine cores of a group that the owner lives, which renews their patience."""
    group.keepalive_at = now
    order = m.PauseEngine(command_id="", epoch=group.epoch, soft=True)
    return [Send(e.engine_id, order) for e in group.in_state(EngineState.PAUSED)]


# ---- decision

Decide = Callable[[float, Situation, HoldfastConfig], Decision]


def decide_once_paused(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Decide how to repair a group as soon as every engine core is paused."""
    if not group.is_paused:
        return []
    group.keepalive_at = now
    decided = decide_and_repair(state, group, now)
    return decided + state.commands.end_pauses_of(group.group_id)  # a pause fails if the decision ends the instance


def decide_and_repair(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Decide how to repair a group, and carry out the decision."""
    return _carry_out(state, group, _decide(state, group, decide_repair, now), now)


def decide_anew(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Decide again how to repair a paused group after a change of settings; the wait for a command begins anew.

    A pause by an operator that goes on is not published.
    """
    group.open_incident(now).waiting_since = now
    decision = _decide(state, group, decide_repair, now)
    is_news = decision.action is not Action.AWAIT or not group.is_paused_by_operator
    return _carry_out(state, group, decision, now) if is_news else []


def decide_whether_to_wait(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Decide whether a paused group still waits for an operator; waiting on is not published."""
    decision = _decide(state, group, decide_wait, now)
    return [] if decision.action is Action.AWAIT else _carry_out(state, group, decision, now)


def _decide(state: InstanceState, group: LockstepGroup, decide: Decide, now: float) -> Decision:
    engine = group.representative
    situation = Situation(
        incident=group.open_incident(now),
        budgets=group.budgets,
        engine_restarts=engine.restart_budget,
        capacity=state.roster.capacity_around(engine),
        needs_worker_restart=group.needs_worker_restart,
        needs_rebuild=group.needs_rebuild,
        unrebuildable=group.unrebuildable,
        is_lockstep=group.is_lockstep,
        siblings=state.roster.count_siblings(group),
        fruitless=group.fruitless,
    )
    return decide(now, situation, state.config)


def _carry_out(state: InstanceState, group: LockstepGroup, decision: Decision, now: float) -> list[Effect]:
    engine, incident, reason = group.representative, group.open_incident(now), decision.reason
    incident.reason, incident.retry_at = reason, decision.retry_at
    made = publish_decision(state, group, engine, decision, incident.fault)
    match decision.action:
        case Action.RETRY:
            return [made, *retry(state, group, now)]
        case Action.RESTART_WORKERS:
            return [made, *restart_workers(state, group, now)]
        case Action.RESTART_ENGINE:
            return [made, *replace_engine(state, group, engine, decision, now, kill=True)]
        case Action.LEAVE_OUT:
            return [made, *leave_out_engine(state, group, engine, reason, now, kill=True)]
        case Action.END:
            return [made, *end_instance(state, group, engine, reason, now)]
        case _:
            return [made]


def publish_decision(
    state: InstanceState, group: LockstepGroup, engine: Engine, decision: Decision, fault: Fault | None
) -> Publish:
    """Publish a decision, with the reason and the figures."""
    record = DecisionRecord(
        action=decision.action,
        rung=decision.action.rung,
        policy=state.config.fault_policy,
        fault_class=None if fault is None else fault.fault_class,
        rank=None if fault is None else fault.rank,
        tries=decision.tries,
        limit=decision.limit,
        ranks_out=state.roster.capacity_around(engine).ranks_out,
        would=decision.would,
    )
    return publish(state, EventKind.DECISION_MADE, group, engine, reason=decision.reason, decision=record)


# ---- recovery of a paused group


def retry(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Let a paused group recover under a new command of the instance."""
    command_id = state.new_command_id()
    state.commands.begin(command_id, [group.group_id])
    return recover(state, group, command_id, now)


def restart_workers(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Let a paused group recover with new processes for the sick ranks, under the operator's command if any.

    After retries that did not last, the rank of the fault counts as sick.
    """
    if group.fault is not None and group.fault.rank is not None:
        group.representative.sick_ranks.add(group.fault.rank)
    command_id = group.open_incident(now).restart_command
    return retry(state, group, now) if command_id is None else recover(state, group, command_id, now)


def recover(state: InstanceState, group: LockstepGroup, command_id: str, now: float) -> list[Effect]:
    """Let a paused group recover under the next epoch. Sick ranks get a new process first."""
    incident = group.open_incident(now)
    replaces_workers = group.needs_worker_restart
    incident.collectives_broken |= replaces_workers  # a replacement has to join its peers in any case
    _count_try(state, group, now)
    group.epoch += 1
    group.last_command_id = command_id
    recovery = Recovery(command_id, now, rebuilds=group.needs_rebuild, replaces_workers=replaces_workers)
    order = BeginRecovery(
        group.engine_ids,
        command_id,
        group.epoch,
        rebuild=recovery.rebuilds,
        replace={e.engine_id: ranks for e in group.engines if (ranks := group.sick_ranks_of(e))},
        extra_wait_s=state.config.worker_start_timeout_s if replaces_workers else 0.0,
    )
    # A pause by an operator was no wait for a command.
    waiting_since = now if incident.paused_by_operator else incident.waiting_since
    group.incident = incident.begin_recovery(recovery, waiting_since)
    for engine in group.engines:
        engine.progressed = False
        engine.move(Trigger.RECOVERY_ORDERED)
    started = (publish(state, EventKind.RECOVERY_STARTED, group, e, command_id=command_id) for e in group.engines)
    return [order, *started]


def close_rendezvous(group: LockstepGroup) -> list[Effect]:
    """Close the rendezvous of the recovery under way, so that no rank waits there for a rank that will not come."""
    is_open = group.recovery is not None and group.recovery.rebuilds
    return [CloseRendezvous(group.engine_ids, group.epoch)] if is_open else []


def _count_try(state: InstanceState, group: LockstepGroup, now: float) -> None:
    """Count a recovery against the budget of the rung."""
    incident, budgets, config, opened_at = group.open_incident(now), group.budgets, state.config, group.opened_at
    is_unneeded = incident.paused_by_operator and incident.fault is None
    if group.representative.progressed:
        budgets.fruitless = Fruitless()
    if incident.search_progressed:
        pass  # each try leaves fewer suspects: the search ends by itself
    elif group.needs_worker_restart:
        budgets.worker_restarts = budgets.worker_restarts.spend(worker_restart_intensity(config), now, opened_at)
        budgets.forget_retries()
    elif not incident.is_joining and not is_unneeded:
        budgets.retries = budgets.retries.spend(retry_intensity(config), now, opened_at)
        if not group.representative.suspects:
            budgets.fruitless = budgets.fruitless.after_retry()
        if incident.fault is not None and incident.fault.fault_class is FaultClass.UNKNOWN:
            intensity = unknown_retry_intensity(config)
            budgets.unknown_retries = budgets.unknown_retries.spend(intensity, now, opened_at)
    budgets.note_named(named_by(incident.fault), now)


# ---- replacement of an engine core


def replace_engine(
    state: InstanceState,
    group: LockstepGroup,
    engine: Engine,
    restart: Decision,
    now: float,
    *,
    kill: bool,
    command_id: str | None = None,
) -> list[Effect]:
    """Replace the process of an engine core. The lockstep group waits for the replacement.

    Args:
        restart: the reason, and the backoff before the replacement is started.
        kill: the present process still runs and has to be killed.
        command_id: the operator's command, if any. A restart by command counts against no budget.
    """
    processes = _processes_to_end(engine, kill)
    effects = _give_up_commands(state, group, engine, restart.reason)
    engine.restart_command = command_id
    if command_id is None:
        intensity = engine_restart_intensity(state.config)
        engine.restart_budget = engine.restart_budget.spend(intensity, now, group.opened_at)
    is_in_a_row = kill and command_id is None and not engine.progressed and group.budgets.fruitless != Fruitless()
    fruitless = group.budgets.fruitless.after_engine_restart() if is_in_a_row else Fruitless()
    group.lose(engine, now)
    group.budgets.fruitless = fruitless
    engine.failed_start = None
    engine.replacement_due_at = now + replacement_bound_s(restart.after_s, state.config)
    lost = _publish_loss(state, group, engine, restart.reason, command_id, now)
    order = ReplaceEngine(
        engine.engine_id,
        restart.after_s,
        known_at=lost.event.sequence,
        processes=processes,
        kill=kill,
        joins_epoch=group.epoch if group.is_lockstep else None,
        runtime_state=engine.runtime_state,
    )
    return [*effects, lost, order, *contain(state, group, now)]


def leave_out_engine(
    state: InstanceState, group: LockstepGroup, engine: Engine, reason: str, now: float, *, kill: bool
) -> list[Effect]:
    """Serve on without an engine core. The front end moves the requests to the remaining engine cores."""
    processes = _processes_to_end(engine, kill)
    effects = _give_up_commands(state, group, engine, reason)
    group.lose(engine, now)
    group.leave_out(engine, reason, now)
    lost = publish(state, EventKind.ENGINE_LOST, group, engine, reason=reason)
    return [*effects, lost, LeaveOut(engine.engine_id, processes, kill=kill)]


def _give_up_commands(state: InstanceState, group: LockstepGroup, engine: Engine, reason: str) -> list[Effect]:
    """Fail the commands under way in the group of a lost engine core, and close the group's rendezvous."""
    if group.incident is not None and state.commands.await_pause_of(group.group_id):
        # The pause has failed, so no operator would resume the group.
        group.incident.paused_by_operator = group.incident.is_soft = False
    failed = state.commands.fail_in_group(group.group_id, reason) + fail_armings(engine, reason)
    return [*failed, CloseRendezvous(group.engine_ids, group.epoch)]


def _publish_loss(
    state: InstanceState, group: LockstepGroup, engine: Engine, reason: str, command_id: str | None, now: float
) -> Publish:
    group.open_incident(now).reason = reason
    return publish(state, EventKind.ENGINE_LOST, group, engine, command_id=command_id, reason=reason)


def _processes_to_end(engine: Engine, kill: bool) -> tuple[int, ...]:
    """Return the processes that have to be gone before a replacement starts: the workers, and a killed engine core."""
    engine_core = (engine.pid,) if kill and engine.pid is not None else ()
    return (*engine.worker_pids, *engine_core)
