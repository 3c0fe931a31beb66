"""Puts another process in the place of an engine core, or leaves it out: the third and fourth rung of the ladder.

Asks nobody whether it may. Its requests are no matter of this module: whoever serves them sees in the view that an
engine was lost once more, and moves them.
"""

from __future__ import annotations

from holdfast.core.instance.commands import Commands
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.settings import Settings
from holdfast.core.policy.actions import Replacement, recent
from holdfast.core.protocol.effects import CloseRendezvous, Effect, LeaveOut, Publish, ReplaceEngine, Settle
from holdfast.core.protocol.events import EventKind


class Replacements:
    """What is done about engine cores whose process is gone or has to go."""

    def __init__(self, event_log: EventLog, commands: Commands, settings: Settings) -> None:
        self._event_log = event_log
        self._commands = commands
        self._settings = settings

    def replace(self, group: LockstepGroup, engine: Engine, plan: Replacement, now: float) -> list[Effect]:
        """Put another process in its place.

        What is under way on its group is not followed any more, and whoever waits there for a peer waits in vain.
        """
        processes = _processes(engine, plan)
        effects = self._give_up(group, engine, plan.reason)
        self._count(group, engine, now, plan.asked)
        group.lose(engine, now)
        lost = self._lost(group, engine, plan.reason)
        order = ReplaceEngine(
            engine.engine_id,
            plan.after_s,
            known_at=lost.event.sequence,
            processes=processes,
            kill=plan.kill,
            joins_epoch=group.epoch if group.is_lockstep else None,
        )
        return [*effects, lost, order]

    def leave_out(self, group: LockstepGroup, engine: Engine, plan: Replacement, now: float) -> list[Effect]:
        """Go on without it; whoever serves moves its requests to the others."""
        processes = _processes(engine, plan)
        effects = self._give_up(group, engine, plan.reason)
        group.lose(engine, now)
        group.leave_out(engine, plan.reason, now)
        lost = self._lost(group, engine, plan.reason)
        return [*effects, lost, LeaveOut(engine.engine_id, processes, kill=plan.kill)]

    def _give_up(self, group: LockstepGroup, engine: Engine, reason: str) -> list[Effect]:
        """What is under way on its group comes to nothing."""
        if self._commands.await_pause(group.group_id):
            group.paused_by_hand = group.soft = False  # it has failed, so nobody would end it
        return [*self._fail_commands(group, engine, reason), CloseRendezvous(group.engine_ids, group.epoch)]

    def _lost(self, group: LockstepGroup, engine: Engine, reason: str) -> Publish:
        group.reason = reason
        return self._event_log.publish(EventKind.ENGINE_LOST, group, engine, reason=reason)

    def _count(self, group: LockstepGroup, engine: Engine, now: float, asked: str | None) -> None:
        """What was asked for counts against no budget."""
        engine.asked_restart = asked
        if asked is None:
            window_s = self._settings.config.engine_restart_window_s
            engine.restarted_at = (*recent(engine.restarted_at, now, window_s, group.began_at), now)

    def _fail_commands(self, group: LockstepGroup, engine: Engine, error: str) -> list[Effect]:
        settled = self._commands.fail(group.group_id, error)
        settled += [Settle(command_id, error=error) for command_id in engine.armed]
        engine.armed.clear()
        return settled


def _processes(engine: Engine, plan: Replacement) -> tuple[int, ...]:
    """What has to be gone; one that is killed goes at once, and is waited for all the same."""
    its_own = (engine.pid,) if plan.kill and engine.pid is not None else ()
    return (*engine.worker_pids, *its_own)
