"""Commands of an operator: the preconditions of each, and what each begins.

A precondition that does not hold raises an error that says what to do instead. Until then nothing has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.config import HoldfastConfig, change_settings, compare_settings
from holdfast.core.errors import BadCommand, BadConfiguration, CommandConflict
from holdfast.core.instance import engine_loss, guilt
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.repair import decide_anew, pause, recover
from holdfast.core.instance.state import InstanceState, publish_of_instance
from holdfast.core.policy.incident import why_stale
from holdfast.core.protocol import commands as c
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Send, Settle
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState

# ---- preconditions


def require_paused(group: LockstepGroup, what: str) -> None:
    """Raise `CommandConflict` unless every engine core of a group is paused and no recovery is under way."""
    if group.recovery is not None:
        raise CommandConflict(
            f"command {group.recovery.command_id} is already under way on engine {group.engine_ids[0]}",
            state=group.engines[0].state,
            hint="wait for it to end; GET /fault_tolerance/status shows it",
        )
    if moving := [e for e in group.engines if e.state is not EngineState.PAUSED]:
        raise CommandConflict(
            f"engine {moving[0].engine_id} is {moving[0].state}, there is nothing to {what}",
            state=moving[0].state,
            hint=f"{what} makes sense while an engine is paused",
        )


def require_known_ranks(engine: Engine, ranks: Sequence[int]) -> None:
    """Raise `BadCommand` unless an engine core has all the named ranks."""
    if unknown := [r for r in ranks if not 0 <= r < engine.ranks]:
        raise BadCommand(
            f"engine {engine.engine_id} has no rank {unknown[0]}", hint=f"it has ranks 0 to {engine.ranks - 1}"
        )


def require_healthy(group: LockstepGroup) -> None:
    """Raise `CommandConflict` unless every engine core of a group is healthy."""
    if unwell := [e for e in group.engines if e.state is not EngineState.HEALTHY]:
        raise CommandConflict(
            f"engine {unwell[0].engine_id} is {unwell[0].state}, it cannot be paused now",
            state=unwell[0].state,
            hint="pause makes sense while every engine of the lockstep group is healthy",
        )


def require_repeatable_state(engine: Engine, config: HoldfastConfig) -> None:
    """Raise `CommandConflict` if a new process would serve without state that was set at run time."""
    stale = why_stale(engine.unrepeatable_state)
    if stale and not config.accept_stale_state:
        raise CommandConflict(
            f"engine core {engine.engine_id} gets no new process: {stale}",
            state=engine.state,
            hint="to accept the loss: holdfast apply configure --set accept_stale_state=true",
        )


def require_replaceable(group: LockstepGroup, engine: Engine, unrecoverable_reason: str) -> None:
    """Raise `CommandConflict` unless the process of an engine core can be replaced now."""
    name = f"engine core {engine.engine_id}"
    if engine.state in (EngineState.STARTING, EngineState.RESTARTING):
        raise CommandConflict(f"{name} is {engine.state} already", state=engine.state, hint="wait until it is healthy")
    if group.recovery is not None:
        raise CommandConflict(
            f"command {group.recovery.command_id} is already under way on {name}",
            state=engine.state,
            hint="wait for it to end",
        )
    if group.is_lockstep and group.unrebuildable:
        unrecoverable_reason = unrecoverable_reason or "; ".join(dict.fromkeys(group.unrebuildable))
    if unrecoverable_reason:
        raise CommandConflict(f"{name} cannot be replaced: {unrecoverable_reason}", state=engine.state)


def require_resumable(group: LockstepGroup, soft: bool) -> None:
    """Raise `CommandConflict` if a pause would break collectives of a group that cannot be rebuilt."""
    breaks = not soft or group.is_lockstep  # in lockstep, no engine core pauses without broken collectives
    if group.unrebuildable and breaks and not group.is_single_rank:
        raise CommandConflict(
            f"engine {group.engine_ids[0]} could not resume after a pause: its collectives would be broken "
            f"and cannot be rebuilt in place ({'; '.join(dict.fromkeys(group.unrebuildable))})",
            state=group.engines[0].state,
            hint="a soft pause breaks nothing" if len(group.engines) == 1 else "",
        )


_NEW_PROCESSES = "an operator has processes replaced, and the cause may have gone"

# ---- commands


def retry(state: InstanceState, command: c.Retry, now: float) -> list[Effect]:
    """Let the groups of some engine cores recover, or every paused group when none is named."""
    groups = state.roster.choose(command.engine_ids, lambda g: g.is_paused)
    return _recover(state, "retry", command.command_id, groups, now)


def resume(state: InstanceState, command: c.Resume, now: float) -> list[Effect]:
    """Let groups recover that an operator has paused."""
    groups = state.roster.choose(command.engine_ids, lambda g: g.is_paused_by_operator)
    for group in groups:
        if group.is_paused and not group.is_paused_by_operator:
            raise CommandConflict(
                f"engine {group.engine_ids[0]} is paused after a fault, not by operator",
                state=EngineState.PAUSED,
                hint="use retry",
            )
    return _recover(state, "resume", command.command_id, groups, now)


def pause_groups(state: InstanceState, command: c.Pause, now: float) -> list[Effect]:
    """Pause the groups of some engine cores, or all that are not left out when none is named."""
    command_id, soft = command.command_id, command.soft
    groups = state.roster.choose(command.engine_ids, lambda g: not g.is_left_out)
    _require_new_command(state, groups[0], command_id)
    for group in groups:
        require_healthy(group)
        require_resumable(group, soft)
    state.commands.begin(command_id, [g.group_id for g in groups], awaits_pause=True)
    effects: list[Effect] = []
    for group in groups:
        incident = group.open_incident(now)
        incident.paused_by_operator, incident.is_soft = True, soft
        order = m.PauseEngine(command_id=command_id, epoch=group.epoch, soft=soft)
        for engine in group.engines:
            effects += pause(state, group, engine, order, "ordered by operator", now)
    return effects


def restart_workers(state: InstanceState, command: c.RestartWorkers, now: float) -> list[Effect]:
    """Give ranks of a healthy engine core a new process, every rank when none is named."""
    command_id, ranks = command.command_id, command.ranks
    group, engine = state.roster.find(command.engine_id)
    _require_new_command(state, group, command_id)
    require_known_ranks(engine, ranks)
    require_healthy(group)
    require_resumable(group, soft=False)
    require_repeatable_state(engine, state.config)
    state.commands.begin(command_id, [group.group_id])
    group.open_incident(now).restart_command = command_id
    engine.sick_ranks.update(ranks or range(engine.ranks))
    effects = guilt.try_again(state, _NEW_PROCESSES, now)
    for member in group.engines:
        order = m.PauseEngine(command_id=command_id, epoch=group.epoch)
        effects += pause(state, group, member, order, "workers are to be restarted", now)
    return effects


def restart_engine(
    state: InstanceState, command: c.RestartEngine, unrecoverable_reason: str, now: float
) -> list[Effect]:
    """Replace the process of an engine core in any state, and the processes of all workers.

    `unrecoverable_reason` says why no replacement can start, or why no engine can resume the requests; else empty.
    """
    group, engine = state.roster.find(command.engine_id)
    _require_new_command(state, group, command.command_id)
    require_replaceable(group, engine, unrecoverable_reason)
    require_repeatable_state(engine, state.config)
    restarted = engine_loss.restart_engine(state, group, engine, command.command_id, now)
    return restarted + guilt.try_again(state, _NEW_PROCESSES, now)


def inject_fault(state: InstanceState, command: c.InjectFault, now: float) -> list[Effect]:
    """Arm a fault in an engine core."""
    command_id, spec = command.command_id, command.spec
    group, engine = state.roster.find(spec.engine_id)
    _require_new_command(state, group, command_id)
    engine.armed[command_id] = now
    if spec.request:
        engine.poison(spec)
    return [Send(engine.engine_id, m.ArmFault(command_id=command_id, spec=spec))]


def configure(state: InstanceState, command: c.Configure, now: float) -> list[Effect]:
    """Change settings here and in every engine core, then decide again about every paused group."""
    _require_new_command(state, state.roster.groups[0], command.command_id)
    try:
        config = change_settings(state.config, command.settings)
    except BadConfiguration as error:
        raise BadCommand(error.message, hint=error.hint) from None
    old = state.settings
    state.configure(config)
    changes = compare_settings(old, state.settings)
    reason = "; ".join(map(str, changes)) or "nothing differs"
    effects: list[Effect] = [
        Send(e.engine_id, m.ChangeSettings(settings=state.settings))
        for e in state.roster.engines
        if e.state.is_attached
    ]
    about = {"command_id": command.command_id, "reason": reason, "changes": changes}
    effects.append(publish_of_instance(state, EventKind.CONFIGURED, **about))
    if not state.config.poison_memory_s:
        effects += guilt.forget_all(state, "ordered by operator (poison_memory 0)")
    for group in state.roster.groups:
        if group.is_paused and not state.has_ended:
            effects += decide_anew(state, group, now)
    return [*effects, Settle(command.command_id)]


def _recover(
    state: InstanceState, what: str, command_id: str, groups: Sequence[LockstepGroup], now: float
) -> list[Effect]:
    _require_new_command(state, groups[0], command_id)
    for group in groups:
        require_paused(group, what)
    state.commands.begin(command_id, [g.group_id for g in groups])
    return [effect for group in groups for effect in recover(state, group, command_id, now)]


def _require_new_command(state: InstanceState, group: LockstepGroup, command_id: str) -> None:
    if state.has_ended:
        raise CommandConflict(f"the instance has ended: {state.roster.defeat}", state=EngineState.DEAD)
    is_armed = any(command_id in engine.armed for engine in state.roster.engines)
    if is_armed or state.commands.is_open(command_id):
        raise CommandConflict(
            f"a command with the id {command_id} is already under way",
            state=group.engines[0].state,
            hint="every command needs an id of its own",
        )
