"""What follows when the process of an engine core is gone: another one takes its place, or the instance ends."""

from __future__ import annotations

from holdfast.core.instance.commands import Commands
from holdfast.core.instance.decision import Interventions
from holdfast.core.instance.detection import Reports
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.settings import Settings
from holdfast.core.policy.actions import Action, Replacement, recent
from holdfast.core.policy.engines import decide_on_engine, decide_replacement, is_to_try_again
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Send
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState


class EngineLosses:
    """Takes the deaths of engine cores, and the first report of those that take their places."""

    def __init__(
        self,
        event_log: EventLog,
        commands: Commands,
        interventions: Interventions,
        reports: Reports,
        settings: Settings,
    ) -> None:
        self._event_log = event_log
        self._commands = commands
        self._interventions = interventions
        self._reports = reports
        self._settings = settings

    def lost(
        self, group: LockstepGroup, engine: Engine, why: str, unrecoverable_reason: str, now: float
    ) -> list[Effect]:
        """An engine core is gone, or the one that was to take its place did not start.

        `unrecoverable_reason` says why nobody could go on with its requests or start another; empty where somebody can.
        """
        if engine.state is EngineState.LEFT_OUT:
            return []
        gone = f"engine core {engine.engine_id} is gone: {why}"
        if unrecoverable_reason or engine.state is EngineState.STARTING:
            return self._interventions.end(
                group, engine, f"{gone}; {unrecoverable_reason}" if unrecoverable_reason else gone
            )
        return self._replace_or_end(group, engine, gone, now, kill=False)

    def give_up_on(self, group: LockstepGroup, engine: Engine, why: str, now: float) -> list[Effect]:
        """An engine core did not come to an end in time with what it is at: it is not waited for any longer."""
        return self._replace_or_end(group, engine, why, now, kill=True)

    def restart(self, group: LockstepGroup, engine: Engine, command_id: str, now: float) -> list[Effect]:
        """Somebody wants another process in its place, whatever its state."""
        why = f"engine core {engine.engine_id} is restarted: asked for"
        plan = Replacement(True, why, kill=engine.pid is not None, asked=command_id)
        effects = self._interventions.replace(group, engine, plan, now)
        self._commands.begin(command_id, [group.group_id])
        return effects

    def _replace_or_end(
        self, group: LockstepGroup, engine: Engine, why: str, now: float, *, kill: bool
    ) -> list[Effect]:
        if kill and engine.pid is None:
            return self._interventions.end(group, engine, f"{why}; it has never served")
        others = self._interventions.others(group)
        decision = decide_on_engine(why, self._plan(group, engine, now), others, self._settings.config)
        decided = self._interventions.tell(group, engine, decision, engine.fault)
        match decision.action:
            case Action.END:
                return [decided, *self._interventions.end(group, engine, decision.reason)]
            case Action.LEAVE_OUT:
                plan = Replacement(False, decision.reason, kill=kill)
                return [decided, *self._interventions.leave_out(group, engine, plan, now)]
        plan = Replacement(True, why, decision.after_s, kill=kill)
        replaced = self._interventions.replace(group, engine, plan, now)
        return [decided, *replaced, *self._reports.when_recovery_is_over(group, now)]

    def try_again(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Give an engine core that was left out another process, when its time has come."""
        engine = group.engines[0]  # one in lockstep is never left out
        if not group.is_left_out or not is_to_try_again(now, engine.left_out_at, self._settings.config):
            return []
        why = f"engine core {engine.engine_id} was left out for {now - engine.left_out_at:.0f} s, and is tried again"
        return self._interventions.replace(group, engine, Replacement(True, why), now)

    def _plan(self, group: LockstepGroup, engine: Engine, now: float) -> Replacement:
        if group.is_lockstep and group.unrebuildable:
            what = "; ".join(dict.fromkeys(group.unrebuildable))
            return Replacement(False, f"nobody could join its lockstep group: {what} cannot be rebuilt in place")
        return decide_replacement(
            recent(engine.restarted_at, now, self._settings.config.engine_restart_window_s, group.began_at),
            self._settings.config,
            self._interventions.ranks_out(engine),
        )

    def returned(self, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float) -> list[Effect]:
        """A report while another process is being started: only its own first one is news."""
        if not isinstance(fact, m.EngineAttached) or fact.pid == engine.lost_pid:
            return []
        began_at = now if group.began_at is None else group.began_at
        if not (group.is_lockstep or group.paused_by_hand):
            group.close_incident()
        group.waiting_since = now
        armed = [Send(engine.engine_id, m.ArmFault(command_id="", spec=spec)) for spec in engine.poisons]
        effects = [*armed, *self._reports.take(group, engine, fact, now)]
        restarted = self._event_log.publish(EventKind.ENGINE_RESTARTED, group, engine, interruption_s=now - began_at)
        asked = [] if group.is_lockstep else self._reports.settle_restarts(group)
        return [*effects, restarted, *asked]
