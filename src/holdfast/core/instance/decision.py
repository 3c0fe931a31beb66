"""What an instance does about a lockstep group: pause it, decide, let it recover, end.

Each changes the group at once and returns what has to be sent and told for it. Asks nobody whether it may:
who reports or instructs has seen to that.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.instance.commands import Commands
from holdfast.core.instance.engine_repair import Replacements
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.group import Engine, LockstepGroup
from holdfast.core.instance.roster import Roster
from holdfast.core.instance.settings import Settings
from holdfast.core.policy.actions import Action, Decision, Replacement, recent
from holdfast.core.policy.capacity import RanksOut
from holdfast.core.policy.ladder import Incident
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, CloseRendezvous, Effect, End, Publish, Send, Settle
from holdfast.core.protocol.events import DecisionRecord, EventKind
from holdfast.core.states import EngineState, Trigger

Decide = Callable[[float, Incident, HoldfastConfig], Decision]


class Interventions:
    """What is done about the groups of one instance."""

    def __init__(
        self,
        roster: Roster,
        event_log: EventLog,
        commands: Commands,
        settings: Settings,
        new_command_id: Callable[[], str],
        replacements: Replacements,
    ) -> None:
        self._roster = roster
        self._event_log = event_log
        self._commands = commands
        self._settings = settings
        self._new_command_id = new_command_id
        self._replacements = replacements

    # ---- pausing

    def contain(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Pause whoever still runs in a group of which somebody stands: it would wait for its peer for ever."""
        culprits = group.in_state(EngineState.FAULTED, EngineState.PAUSED, EngineState.RESTARTING)
        if not culprits:
            return []
        group.open_incident(now)
        reason = f"engine {culprits[0].engine_id} of its lockstep group stands still"
        effects: list[Effect] = []
        for engine in group.in_state(EngineState.HEALTHY):
            order = m.PauseEngine(command_id=self._new_command_id(), epoch=group.epoch)
            effects += self.pause(group, engine, order, reason, now)
        return effects

    def pause(
        self, group: LockstepGroup, engine: Engine, order: m.PauseEngine, reason: str, now: float
    ) -> list[Effect]:
        """Order one engine of a group to stand still."""
        engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
        group.broken |= not order.soft
        ordered = self._event_log.publish(
            EventKind.PAUSE_ORDERED, group, engine, command_id=order.command_id, reason=reason
        )
        return [Send(engine.engine_id, order), ordered]

    def pause_again(self, group: LockstepGroup, engine: Engine, now: float) -> list[Effect]:
        """Pause what took the place of an engine that somebody had paused; nothing where nobody had."""
        if not group.paused_by_hand:
            return []
        group.soft = True  # it has nothing under way that would have to be broken
        order = m.PauseEngine(command_id=self._new_command_id(), epoch=group.epoch, soft=True)
        return self.pause(group, engine, order, "paused by hand, before another process took its place", now)

    def harden(self, group: LockstepGroup) -> list[Effect]:
        """Make a soft pause a hard one."""
        group.soft, group.broken = False, True
        order = m.PauseEngine(command_id=self._new_command_id(), epoch=group.epoch)
        return [Send(engine_id, order) for engine_id in group.engine_ids]

    def affirm(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Tell the engines that stand that somebody still lives."""
        group.affirmed_at = now
        order = m.PauseEngine(command_id="", epoch=group.epoch, soft=True)
        return [Send(e.engine_id, order) for e in group.in_state(EngineState.PAUSED)]

    # ---- deciding and recovering

    def ranks_out(self, engine: Engine) -> RanksOut:
        return self._roster.ranks_out(engine)

    def others(self, group: LockstepGroup) -> int:
        """How many engine cores could serve on without one of this group."""
        return self._roster.others(group)

    def decide(self, group: LockstepGroup, decide: Decide, now: float, *, unless_waiting: bool = False) -> list[Effect]:
        """Do what is decided; `unless_waiting`: to go on waiting is no news."""
        spokesman = _spokesman(group)
        incident = _incident(group, spokesman, self._roster, now)
        decision = decide(now, incident, self._settings.config)
        if unless_waiting and decision.action is Action.AWAIT:
            return []
        group.reason, group.retry_at = decision.reason, decision.retry_at
        made = self.tell(group, spokesman, decision, incident.fault)
        match decision.action:
            case Action.RETRY:
                return [made, *self._recover_unasked(group, now)]
            case Action.RESTART_WORKERS:
                _give_up_on_faulty_rank(group)
                return [made, *self._restart(group, now)]
            case Action.RESTART_ENGINE:
                plan = Replacement(True, decision.reason, decision.after_s, kill=True)
                return [made, *self.replace(group, spokesman, plan, now)]
            case Action.LEAVE_OUT:
                plan = Replacement(False, decision.reason, kill=True)
                return [made, *self.leave_out(group, spokesman, plan, now)]
            case Action.END:
                return [made, *self.end(group, spokesman, decision.reason)]
            case Action.AWAIT:
                return [made]

    def tell(self, group: LockstepGroup, engine: Engine, decision: Decision, fault: Fault | None) -> Publish:
        """The one record of a decision: what, why, and in figures."""
        record = DecisionRecord(
            action=decision.action,
            rung=decision.action.rung,
            policy=self._settings.config.fault_policy,
            fault_class=None if fault is None else fault.fault_class,
            rank=None if fault is None else fault.rank,
            tries=decision.tries,
            limit=decision.limit,
            ranks_out=self.ranks_out(engine).now,
            would=decision.would,
        )
        return self._event_log.publish(EventKind.DECISION_MADE, group, engine, reason=decision.reason, decision=record)

    def _recover_unasked(self, group: LockstepGroup, now: float) -> list[Effect]:
        command_id = self._new_command_id()
        self._commands.begin(command_id, [group.group_id])
        return self.recover(group, command_id, now)

    def _restart(self, group: LockstepGroup, now: float) -> list[Effect]:
        if group.asked is None:
            return self._recover_unasked(group, now)
        command_id, group.asked = group.asked, None
        return self.recover(group, command_id, now)

    def recover(self, group: LockstepGroup, command_id: str, now: float) -> list[Effect]:
        """Let a group go on that stands paused, under its next epoch; its sick ranks get a new process first."""
        if group.paused_by_hand:
            group.waiting_since = now  # the pause was no wait for an instruction
        group.replacing = group.wants_restart
        group.broken |= group.replacing  # a newcomer has to meet its peers, whatever became of the old collectives
        self._count_try(group, now)
        group.note_named(now)
        group.epoch += 1
        group.command_id = group.last_command_id = command_id
        group.command_at = now
        group.rebuilding = group.needs_rebuild
        replace = {e.engine_id: ranks for e in group.engines if (ranks := group.sick_ranks_of(e))}
        order = BeginRecovery(
            group.engine_ids,
            command_id,
            group.epoch,
            rebuild=group.rebuilding,
            replace=replace,
            extra_wait_s=self._settings.config.worker_start_timeout_s if group.replacing else 0.0,
        )
        group.fault, group.broken, group.paused_by_hand, group.soft, group.retry_at = None, False, False, False, None
        group.joins = False
        group.search_progressed = False
        for engine in group.engines:
            engine.move(Trigger.RECOVERY_ORDERED)
        publish = self._event_log.publish
        started = (publish(EventKind.RECOVERY_STARTED, group, e, command_id=command_id) for e in group.engines)
        return [order, *started]

    def _count_try(self, group: LockstepGroup, now: float) -> None:
        config, opened_at = self._settings.config, group.began_at
        if group.search_progressed:
            return  # every such try leaves fewer suspects: they come to an end by themselves
        if group.replacing:
            group.restarted_at = (*recent(group.restarted_at, now, config.worker_restart_window_s, opened_at), now)
            group.forget_retries()  # what is retried after this is retried in another process
        elif not group.is_joining and (not group.paused_by_hand or group.fault is not None):
            group.retried_at = (*recent(group.retried_at, now, config.retry_window_s, opened_at), now)
            if group.fault is not None and group.fault.fault_class is FaultClass.UNKNOWN:
                known = recent(group.unknown_retried_at, now, config.retry_window_s, opened_at)
                group.unknown_retried_at = (*known, now)

    def replace(self, group: LockstepGroup, engine: Engine, plan: Replacement, now: float) -> list[Effect]:
        """Put another process in the place of an engine core; its lockstep group waits for that one."""
        return self._replacements.replace(group, engine, plan, now) + self.contain(group, now)

    def leave_out(self, group: LockstepGroup, engine: Engine, plan: Replacement, now: float) -> list[Effect]:
        """Go on without an engine core."""
        return self._replacements.leave_out(group, engine, plan, now)

    # ---- ending

    def end(self, group: LockstepGroup, engine: Engine, reason: str) -> list[Effect]:
        """End the whole instance; `engine` is the one that is to blame."""
        group.reason = reason
        settled = self._end_commands(reason)
        ended = self._event_log.publish(EventKind.INSTANCE_DEFEATED, group, engine, fault=engine.fault, reason=reason)
        return [*settled, ended, *self._stop_all(reason)]

    def end_for(self, process: str, reason: str) -> list[Effect]:
        """End the whole instance because of a process beside the engine cores."""
        settled = self._end_commands(reason)
        return [
            *settled,
            self._event_log.publish_of(process, EventKind.INSTANCE_DEFEATED, reason=reason),
            *self._stop_all(reason),
        ]

    def _end_commands(self, reason: str) -> list[Effect]:
        self._roster.end(reason)
        return self._commands.end_all(reason) + self._settle_armed(reason)

    def _stop_all(self, reason: str) -> list[Effect]:
        stop = m.EndEngine(command_id=self._new_command_id(), reason=reason)
        workers = tuple(pid for engine in self._roster.engines for pid in engine.worker_pids)
        return [*(Send(i, stop) for i in self._roster.engine_ids), End(reason, workers)]

    def _settle_armed(self, error: str) -> list[Effect]:
        effects: list[Effect] = []
        for engine in self._roster.engines:
            effects += [Settle(c, error=error) for c in engine.armed]
            engine.armed.clear()
        return effects


def close_rendezvous(group: LockstepGroup) -> list[Effect]:
    """Nobody is to wait there for a rank that will not come."""
    return [CloseRendezvous(group.engine_ids, group.epoch)] if group.rebuilding else []


def _incident(group: LockstepGroup, spokesman: Engine, roster: Roster, now: float) -> Incident:
    return Incident(
        fault=group.fault,
        began_at=now if group.began_at is None else group.waiting_since,
        retried_at=group.retried_at,
        unknown_retried_at=group.unknown_retried_at,
        named=group.named,
        restarted_at=group.restarted_at,
        failed_restarts=group.failed_restarts,
        wants_restart=group.wants_restart,
        asked=group.asked is not None,
        engine_restarted_at=spokesman.restarted_at,
        out=roster.ranks_out(spokesman),
        others=roster.others(group),
        opened_at=group.began_at,
        joins=group.is_joining,
        in_lockstep=group.is_lockstep,
        broken=group.needs_rebuild,
        unrebuildable=group.unrebuildable,
        paused_by_hand=group.paused_by_hand,
        search_progressed=group.search_progressed,
    )


def _give_up_on_faulty_rank(group: LockstepGroup) -> None:
    """Retries did not last: the rank that failed in all of them is not to be trusted any more."""
    fault = group.fault
    if fault is not None and fault.rank is not None:
        _spokesman(group).sick_ranks.add(fault.rank)


def _spokesman(group: LockstepGroup) -> Engine:
    """The engine that an event about its whole group names: the one that is to blame."""
    blamed = group.fault.engine_id if group.fault is not None else None
    return next((e for e in group.engines if e.engine_id == blamed), group.engines[0])
