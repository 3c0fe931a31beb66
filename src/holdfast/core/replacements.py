"""Puts another process in the place of an engine core: the third rung of the ladder.

Asks nobody whether it may. Its requests are no matter of this module: whoever serves them sees in the view that an
engine was lost once more, and moves them.
"""

from __future__ import annotations

from holdfast.core.commands import Commands
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import CloseRendezvous, Effect, ReplaceEngine, Settle
from holdfast.core.events import EventKind
from holdfast.core.group import Engine, LockstepGroup
from holdfast.core.journal import Journal
from holdfast.core.policy import Replacement, recent


class Replacements:
    """What is done about engine cores whose process is gone or has to go."""

    def __init__(self, journal: Journal, commands: Commands, config: HoldfastConfig) -> None:
        self._journal = journal
        self._commands = commands
        self._config = config

    def replace(self, group: LockstepGroup, engine: Engine, plan: Replacement, now: float) -> list[Effect]:
        """Put another process in its place.

        What is under way on its group is not followed any more, and whoever waits there for a peer waits in vain.
        """
        if self._commands.await_pause(group.group_id):
            group.paused_by_hand = group.soft = False  # it has failed, so nobody would end it
        effects = self._fail_commands(group, engine, plan.reason)
        effects.append(CloseRendezvous(group.engine_ids, group.epoch))
        processes = engine.worker_pids
        if plan.kill and engine.pid is not None:
            processes = (*processes, engine.pid)  # it goes at once, and is waited for all the same
        self._count(group, engine, now, plan.asked)
        group.lose(engine, now)
        group.reason = plan.reason
        lost = self._journal.publish(EventKind.ENGINE_LOST, group, engine, reason=plan.reason)
        order = ReplaceEngine(
            engine.engine_id,
            plan.after_s,
            known_at=lost.event.sequence,
            processes=processes,
            kill=plan.kill,
            joins_epoch=group.epoch if group.is_lockstep else None,
        )
        return [*effects, lost, order]

    def _count(self, group: LockstepGroup, engine: Engine, now: float, asked: str | None) -> None:
        """What was asked for counts against no budget."""
        engine.asked_restart = asked
        if asked is None:
            window_s = self._config.engine_restart_window_s
            engine.restarted_at = (*recent(engine.restarted_at, now, window_s, group.began_at), now)

    def _fail_commands(self, group: LockstepGroup, engine: Engine, error: str) -> list[Effect]:
        settled = self._commands.fail(group.group_id, error)
        settled += [Settle(command_id, error=error) for command_id in engine.armed]
        engine.armed.clear()
        return settled
