"""Repair: let a paused lockstep group recover, replace the process of an engine core, or leave an engine core out.

Callers have checked the preconditions. The requests of a lost engine core are not handled here: the front end sees in
the view that an engine core was lost, and moves its requests.
"""

from __future__ import annotations

from holdfast.core.faults.faults import FaultClass
from holdfast.core.instance.commands import fail_armings
from holdfast.core.instance.containment import contain
from holdfast.core.instance.event_log import publish
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.state import InstanceState
from holdfast.core.poison.numerics import named_by
from holdfast.core.policy.actions import Decision
from holdfast.core.policy.budget import (
    engine_restart_intensity,
    retry_intensity,
    unknown_retry_intensity,
    worker_restart_intensity,
)
from holdfast.core.policy.incident import Recovery
from holdfast.core.protocol.effects import BeginRecovery, CloseRendezvous, Effect, LeaveOut, Publish, ReplaceEngine
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import Trigger

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
    if incident.search_progressed:
        pass  # each try leaves fewer suspects: the search ends by itself
    elif group.needs_worker_restart:
        budgets.worker_restarts = budgets.worker_restarts.spend(worker_restart_intensity(config), now, opened_at)
        budgets.forget_retries()
    elif not incident.is_joining and not is_unneeded:
        budgets.retries = budgets.retries.spend(retry_intensity(config), now, opened_at)
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
    group.lose(engine, now)
    lost = _publish_loss(state, group, engine, restart.reason, now)
    order = ReplaceEngine(
        engine.engine_id,
        restart.after_s,
        known_at=lost.event.sequence,
        processes=processes,
        kill=kill,
        joins_epoch=group.epoch if group.is_lockstep else None,
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


def _publish_loss(state: InstanceState, group: LockstepGroup, engine: Engine, reason: str, now: float) -> Publish:
    group.open_incident(now).reason = reason
    return publish(state, EventKind.ENGINE_LOST, group, engine, reason=reason)


def _processes_to_end(engine: Engine, kill: bool) -> tuple[int, ...]:
    """Return the processes that have to be gone before a replacement starts: the workers, and a killed engine core."""
    engine_core = (engine.pid,) if kill and engine.pid is not None else ()
    return (*engine.worker_pids, *engine_core)
