"""What follows from what engine cores report: each report changes its engine, its lockstep group, or nothing.

Must never raise: reports may be late, lost, repeated or out of order.
"""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, FaultClass, deeper, unresponsive
from holdfast.core.instance.commands import Commands
from holdfast.core.instance.decision import Interventions, close_rendezvous
from holdfast.core.instance.event_log import EventLog
from holdfast.core.instance.group import STOPPING, Engine, LockstepGroup
from holdfast.core.poison.detector import FAULTS_BEFORE_SEARCH
from holdfast.core.policy.ladder import decide_repair
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Effect, Settle
from holdfast.core.protocol.events import EventKind, StandbyView
from holdfast.core.states import EngineState, Trigger


class Reports:
    """Takes the reports of an instance that has not ended."""

    def __init__(self, event_log: EventLog, commands: Commands, interventions: Interventions) -> None:
        self._event_log = event_log
        self._commands = commands
        self._interventions = interventions

    def take(self, group: LockstepGroup, engine: Engine, fact: m.FromEngine, now: float) -> list[Effect]:
        """Take one report of an engine of a group. One from another epoch changes nothing."""
        match fact:
            case m.EngineAttached():
                return self._attached(group, engine, fact, now)
            case m.EngineFaulted():
                return self._faulted(group, engine, fact, now)
            case m.EnginePaused():
                return self._held(group, engine, fact, now)
            case m.EngineRecovered():
                return self._recovered(group, engine, fact, now)
            case m.RecoveryAborted():
                return self._recovery_failed(group, engine, fact.fault, now) if _answers(fact, group, engine) else []
            case m.EngineAnswered():
                return self._answered(group, engine, fact)
            case m.StandbysChanged():
                engine.standbys = StandbyView(wanted=fact.wanted, ready=fact.ready, memory_bytes=fact.memory_bytes)
                return [self._event_log.publish(EventKind.STANDBYS_CHANGED, group, engine, reason=str(engine.standbys))]
            case m.RequestsSuspected() | m.RequestEnded():
                return self._judged(group, engine, fact) if fact.epoch == group.epoch else []

    def _attached(self, group: LockstepGroup, engine: Engine, fact: m.EngineAttached, now: float) -> list[Effect]:
        if engine.pid is not None:
            return []
        returns = engine.state is EngineState.RESTARTING
        joins = returns and group.is_lockstep
        if engine.state in (EngineState.STARTING, EngineState.RESTARTING):  # else a fault was faster
            engine.move(Trigger.ATTACHED)
        if joins:  # it stands from the start, until it is let in
            engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
        engine.pid, engine.hooks, engine.ranks = fact.pid, fact.hooks, len(fact.workers)
        engine.worker_pids = tuple(w.pid for w in fact.workers)
        common = set.intersection(*(set(w.hooks) for w in fact.workers)) if fact.workers else set()
        engine.worker_hooks = tuple(sorted(common))
        of_workers = (what for w in fact.workers for what in w.unrebuildable)
        engine.unrebuildable = tuple(dict.fromkeys((*fact.unrebuildable, *of_workers)))
        # Before anybody sees it: nothing is to be sent to one that is to stand.
        stays = self._interventions.pause_again(group, engine, now) if returns and not joins else []
        attached = self._event_log.publish(EventKind.ENGINE_ATTACHED, group, engine)
        return [*stays, attached, *self._interventions.contain(group, now)]

    def _faulted(self, group: LockstepGroup, engine: Engine, fact: m.EngineFaulted, now: float) -> list[Effect]:
        if fact.epoch != group.epoch or group.is_expected(fact.fault):
            return []
        if engine.state is EngineState.RECOVERING:
            # It may have overtaken the report that the recovery worked: kept for that one. If not, whoever
            # still waits for this rank where they meet waits in vain.
            engine.fault_in_recovery = deeper(engine.fault_in_recovery, fact.fault)
            return close_rendezvous(group)
        engine.begin_to_stop(Trigger.FAULT, now)
        effects = self._blame(group, engine, fact.fault, now) + self._interventions.contain(group, now)
        if group.in_state(EngineState.RECOVERING):
            effects += close_rendezvous(group)  # their peer is in again and has failed again
        is_news = group.fault is fact.fault
        hangs = fact.fault.fault_class is FaultClass.UNRESPONSIVE and fact.fault.rank is None
        if is_news and (group.stands_paused or hangs):
            # An engine core that does not answer will not come to stand still either.
            effects += self._interventions.decide(group, decide_repair, now)
        return effects

    def _blame(self, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
        """Take a fault into the group's incident. It is news where it goes deeper, or is a cause of its own."""
        if group.is_expected(fault):
            return []
        opens = group.open_incident(now)
        own_cause = engine.fault is None and (opens or fault.fault_class is not FaultClass.COMMUNICATOR)
        engine.faults += own_cause
        engine.fault = deeper(engine.fault, fault)
        is_news = group.blame(engine, fault) or own_cause
        return [self._event_log.publish(EventKind.FAULT_REPORTED, group, engine, fault=fault)] if is_news else []

    def _held(self, group: LockstepGroup, engine: Engine, fact: m.EnginePaused, now: float) -> list[Effect]:
        if fact.epoch != group.epoch:
            return []
        group.broken |= fact.broken
        group.search_progressed |= fact.search_progressed
        if engine.state is EngineState.PAUSED:
            return []
        if engine.state is EngineState.RECOVERING:
            # In this epoch it was let back in and stands again; how the command ended was never heard.
            fault = fact.fault or unresponsive(engine.engine_id, "stands still again without a word")
            return self._recovery_failed(group, engine, fault, now)
        effects: list[Effect] = []
        if engine.state not in STOPPING:
            engine.move(Trigger.FAULT)
        if fact.fault is not None:
            effects += self._blame(group, engine, fact.fault, now)
        engine.move(Trigger.HELD)
        effects.append(self._event_log.publish(EventKind.ENGINE_PAUSED, group, engine, fault=engine.fault))
        return effects + self._interventions.contain(group, now) + self._when_paused(group, now)

    def _when_paused(self, group: LockstepGroup, now: float) -> list[Effect]:
        if not group.stands_paused:
            return []
        group.affirmed_at = now
        decided = self._interventions.decide(group, decide_repair, now)
        return decided + self._commands.paused(group.group_id)  # a pause that ends the instance has not worked

    def _recovered(self, group: LockstepGroup, engine: Engine, fact: m.EngineRecovered, now: float) -> list[Effect]:
        if not _answers(fact, group, engine) or group.began_at is None:
            return []
        engine.move(Trigger.RECOVERED)
        engine.fault = engine.last_error = None
        engine.recoveries += 1
        engine.worker_pids = fact.worker_pids or engine.worker_pids
        engine.worker_restarts += len(fact.report.replaced_ranks)
        engine.sick_ranks.clear()
        recovered = self._event_log.publish(
            EventKind.ENGINE_RECOVERED,
            group,
            engine,
            command_id=fact.command_id,
            report=fact.report,
            interruption_s=now - group.began_at,
        )
        # A peer may have failed meanwhile: then this one must not run on until the last one is done.
        return [recovered, *self._interventions.contain(group, now), *self.when_recovery_is_over(group, now)]

    def _recovery_failed(self, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
        fault = deeper(engine.fault_in_recovery, fault)
        engine.move(Trigger.RECOVERY_FAILED)
        engine.fault, engine.fault_in_recovery = fault, None
        engine.last_error = fault.summary()
        engine.faults += 1
        group.blame(engine, fault)
        group.broken = True
        failed = self._event_log.publish(
            EventKind.RECOVERY_FAILED, group, engine, command_id=group.last_command_id, fault=fault
        )
        effects = [failed, *close_rendezvous(group)]
        return effects + self._interventions.contain(group, now) + self.when_recovery_is_over(group, now)

    def when_recovery_is_over(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Once no member is recovering any more: closed if all are healthy, else the group stands paused again."""
        if group.command_id is None or group.in_state(EngineState.RECOVERING):
            return []
        command_id, group.command_id = group.command_id, None
        if len(group.in_state(EngineState.HEALTHY)) == len(group.engines):
            group.close_incident()
            settled = self._commands.ended(command_id, group.group_id) + self.settle_restarts(group)
            return settled + self._overtaken(group, now)
        failed = any(e.last_error for e in group.engines)
        if group.replacing and failed:  # one restart, whoever failed in it
            group.failed_restarts += 1
        error = group.fault.summary() if group.fault is not None else "an engine stands still again"
        # Where each came through and one has failed anew since, the command has worked: what follows is another matter.
        settled = self._commands.ended(command_id, group.group_id, error if failed else None)
        return settled + self._overtaken(group, now) + self._when_paused(group, now)

    def settle_restarts(self, group: LockstepGroup) -> list[Effect]:
        """Restarts of engine cores that were asked for have ended well."""
        effects: list[Effect] = []
        for engine in group.engines:
            effects += self._commands.ended(engine.asked_restart, group.group_id)
            engine.asked_restart = None
        return effects

    def _overtaken(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Faults that were reported before the recovery that they followed."""
        effects: list[Effect] = []
        for engine in group.engines:
            fault, engine.fault_in_recovery = engine.fault_in_recovery, None
            if fault is not None:
                engine.begin_to_stop(Trigger.FAULT, now)
                effects += self._blame(group, engine, fault, now)
        return effects + self._interventions.contain(group, now)

    def _judged(self, group: LockstepGroup, engine: Engine, fact: m.RequestsSuspected | m.RequestEnded) -> list[Effect]:
        """What an engine core found out about its requests. It has acted on it already."""
        publish = self._event_log.publish
        if isinstance(fact, m.RequestsSuspected):
            engine.suspects = fact.suspects
            kind = EventKind.REQUESTS_SUSPECTED
            return [publish(kind, group, engine, reason=fact.reason, suspects=fact.suspects)]
        engine.ended_requests += 1
        group.forgive(FAULTS_BEFORE_SEARCH)
        told = {"request_id": fact.request_id, "incident": fact.incident, "reason": fact.reason}
        return [publish(EventKind.REQUEST_ENDED, group, engine, **told)]

    def _answered(self, group: LockstepGroup, engine: Engine, fact: m.EngineAnswered) -> list[Effect]:
        if engine.armed.pop(fact.command_id, None) is None:
            return []
        settled = Settle(fact.command_id, error=fact.refused, refused=fact.refused is not None)
        if fact.refused is not None:
            return [settled]
        return [self._event_log.publish(EventKind.FAULT_ARMED, group, engine, command_id=fact.command_id), settled]


def _answers(fact: m.EngineRecovered | m.RecoveryAborted, group: LockstepGroup, engine: Engine) -> bool:
    is_under_way = fact.command_id == group.command_id and fact.epoch == group.epoch
    return is_under_way and engine.state is EngineState.RECOVERING
