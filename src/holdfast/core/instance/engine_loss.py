"""A lost engine core, from the exit of its process to the first report of its replacement."""

from __future__ import annotations

from holdfast.core.instance.defeat import end_instance
from holdfast.core.instance.group import Engine, FailedStart, LockstepGroup
from holdfast.core.instance.repair import leave_out_engine, publish_decision, replace_engine
from holdfast.core.instance.reports import engine_attached, finish_engine_restarts, finish_recovery
from holdfast.core.instance.state import InstanceState, publish
from holdfast.core.policy.incident import engine_restart_intensity, why_stale
from holdfast.core.policy.ladder import Action, Decision, decide_engine_restart, decide_on_engine, is_due_again
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Send
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState


def engine_lost(
    state: InstanceState, group: LockstepGroup, engine: Engine, why: str, unrecoverable_reason: str, now: float
) -> list[Effect]:
    """Take the loss of an engine core's process, or of a replacement that did not start.

    `unrecoverable_reason` says why no replacement can start, or why no engine can resume the requests; else empty.
    """
    if engine.state is EngineState.LEFT_OUT:
        return []
    lost = f"engine core {engine.engine_id} was lost: {why}"
    if unrecoverable_reason or engine.state is EngineState.STARTING:
        reason = f"{lost}; {unrecoverable_reason}" if unrecoverable_reason else lost
        return end_instance(state, group, engine, reason, now)
    return _replace_or_give_up(state, group, engine, lost, now, kill=False)


def lose_late_replacement(state: InstanceState, group: LockstepGroup, engine: Engine, now: float) -> list[Effect]:
    """Treat a replacement that was not started, or has not reported within its bound, as lost too."""
    failed = engine.failed_start or FailedStart("its replacement did not report in time", kill=False)
    why = f"engine core {engine.engine_id} was lost: {failed.reason}"
    return _replace_or_give_up(state, group, engine, why, now, kill=failed.kill)


def kill_overdue_engine(
    state: InstanceState, group: LockstepGroup, engine: Engine, why: str, now: float
) -> list[Effect]:
    """Kill the process of an engine core that has not paused or recovered in time, and replace the engine core."""
    if engine.pid is None:
        return end_instance(state, group, engine, f"{why}; the engine core has never served", now)
    return _replace_or_give_up(state, group, engine, why, now, kill=True)


def restart_engine(
    state: InstanceState, group: LockstepGroup, engine: Engine, command_id: str, now: float
) -> list[Effect]:
    """Replace the process of an engine core in any state, by command of an operator."""
    why = f"engine core {engine.engine_id} is restarted: ordered by operator"
    kill = engine.pid is not None
    restart = Decision(Action.RESTART_ENGINE, why)
    effects = replace_engine(state, group, engine, restart, now, kill=kill, command_id=command_id)
    state.commands.begin(command_id, [group.group_id])
    return effects


def restart_left_out_engine(state: InstanceState, group: LockstepGroup, now: float) -> list[Effect]:
    """Start a left-out engine core again as soon as the restart budget allows."""
    engine = group.engines[0]  # an engine core in lockstep is never left out
    if not group.is_left_out or not is_due_again(now, engine.left_out_at, state.config):
        return []
    if sibling := next((e for e in state.roster.engines if e.state.is_attached), None):
        # Every call that sets state goes to all engine cores: a sibling knows those since the loss.
        engine.runtime_state, engine.unrepeatable_state = sibling.runtime_state, sibling.unrepeatable_state
    if why_stale(engine.unrepeatable_state) and not state.config.accept_stale_state:
        return []
    why = f"engine core {engine.engine_id} was left out for {now - engine.left_out_at:.0f} s and is started again"
    return replace_engine(state, group, engine, Decision(Action.RESTART_ENGINE, why), now, kill=False)


def replacement_reported(
    state: InstanceState, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float
) -> list[Effect]:
    """Take a report that arrives while a replacement starts. Only the replacement's first report counts."""
    if not isinstance(fact, m.EngineAttached):
        return []
    incident = group.open_incident(now)
    incident.waiting_since = now
    if not (group.is_lockstep or incident.paused_by_operator):
        group.incident = None
    armed = [Send(engine.engine_id, m.ArmFault(command_id="", spec=spec)) for spec in engine.poisons]
    attached = engine_attached(state, group, engine, fact, now)
    interruption_s = now - incident.opened_at
    about = {"command_id": engine.restart_command, "interruption_s": interruption_s}
    restarted = publish(state, EventKind.ENGINE_RESTARTED, group, engine, **about)
    # In lockstep the command ends with the recovery in which the replacement joins; in a pause by an operator there is
    # none before the resume.
    joins_now = group.is_lockstep and not incident.paused_by_operator
    ended = [] if joins_now else finish_engine_restarts(state, group, [engine])
    return [*armed, *attached, restarted, *ended]


def _replace_or_give_up(
    state: InstanceState, group: LockstepGroup, engine: Engine, why: str, now: float, *, kill: bool
) -> list[Effect]:
    """Replace the engine core, leave the engine core out, or end the instance, as the policy decides."""
    decision = decide_on_engine(
        why, _decide_restart(state, group, engine, now), state.roster.count_siblings(group), state.config
    )
    decided = publish_decision(state, group, engine, decision, engine.fault)
    match decision.action:
        case Action.END:
            return [decided, *end_instance(state, group, engine, decision.reason, now)]
        case Action.LEAVE_OUT:
            return [decided, *leave_out_engine(state, group, engine, decision.reason, now, kill=kill)]
    restart = Decision(Action.RESTART_ENGINE, why, after_s=decision.after_s)
    replaced = replace_engine(state, group, engine, restart, now, kill=kill)
    return [decided, *replaced, *finish_recovery(state, group, now)]


def _decide_restart(state: InstanceState, group: LockstepGroup, engine: Engine, now: float) -> Decision:
    if group.is_lockstep and group.unrebuildable:
        what = "; ".join(dict.fromkeys(group.unrebuildable))
        reason = f"no replacement could join the lockstep group: {what} cannot be rebuilt in place"
        return Decision(Action.END, reason)
    used = engine.restart_budget.used(engine_restart_intensity(state.config), now, group.opened_at)
    return decide_engine_restart(used, state.config, state.roster.capacity_around(engine))
