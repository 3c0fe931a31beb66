"""Decision: choose the repair of a paused lockstep group by policy, publish the choice, begin the repair."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault
from holdfast.core.instance.defeat import end_instance
from holdfast.core.instance.event_log import publish
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.repair import leave_out_engine, replace_engine, restart_workers, retry
from holdfast.core.instance.state import InstanceState
from holdfast.core.policy.actions import Action, Decision
from holdfast.core.policy.incident import Situation
from holdfast.core.policy.ladder import decide_repair, decide_wait
from holdfast.core.protocol.effects import Effect, Publish
from holdfast.core.protocol.events import DecisionRecord, EventKind

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
