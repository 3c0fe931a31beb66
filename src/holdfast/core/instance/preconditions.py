"""Preconditions of an operator's commands. Each function raises an error that says what to do instead.

Changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.errors import BadCommand, CommandConflict
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.states import EngineState


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
