"""The instance as its ClientSentinel knows it: facts and instructions in, effects out.

Pure: time is an argument, effects are returned, nothing is sent from here. One `Instance` follows any
number of lockstep groups; each has its own epoch, incident and command, and touches no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from holdfast.core import messages as m
from holdfast.core.commands import Commands
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import CloseRendezvous, Effect, End, OrderRecovery, Publish, Send, Settle
from holdfast.core.errors import InstructionConflict, UnknownEngine
from holdfast.core.events import Event, EventKind, InstanceView
from holdfast.core.faults import Fault, FaultClass, deeper
from holdfast.core.group import STOPPING, Engine, LockstepGroup, make_groups
from holdfast.core.injection import InjectionSpec
from holdfast.core.policy import Action, Decision, Incident, decide_repair, decide_wait, recent
from holdfast.core.refusals import refuse_unless_healthy, refuse_unless_it_can_go_on, refuse_unless_paused
from holdfast.core.states import EngineState, Trigger

SOFT_PAUSE_S = 1.0  # a soft pause that has not come to a step boundary by then becomes a hard one
AFFIRM_S = 10.0  # how often engines that stand paused hear that somebody still lives

Decide = Callable[[float, Incident, HoldfastConfig], Decision]


class Instance:
    """Reducer over the facts of all engines. Not thread-safe: one thread owns it.

    Args:
        groups: the engine ids of each lockstep group.
    """

    def __init__(
        self,
        groups: Iterable[Iterable[int]],
        config: HoldfastConfig,
        *,
        wall_clock: Callable[[], float],
        new_command_id: Callable[[], str],
        notify_address: str = "",
    ) -> None:
        self._groups = make_groups(groups)
        self._home = {e.engine_id: (g, e) for g in self._groups for e in g.engines}
        self._config = config
        self._wall_clock = wall_clock
        self._new_command_id = new_command_id
        self._notify_address = notify_address
        self._commands = Commands()
        self._sequence = 0
        self._defeat: str | None = None

    # ---- what can be asked

    def view(self) -> InstanceView:
        return InstanceView(
            engines=tuple(group.view_of(engine) for group, engine in self._home.values()),
            fault_policy=self._config.fault_policy,
            sequence=self._sequence,
            notify_address=self._notify_address,
            defeat=self._defeat,
        )

    # ---- facts from engine cores

    def observe(self, fact: m.FromEngine, now: float) -> list[Effect]:
        """Take one report. One from an unknown engine or another epoch changes nothing.

        Never raises: reports may be late, lost, repeated or out of order.
        """
        home = self._home.get(fact.engine_id)
        if home is None or self._defeat is not None:
            return []
        group, engine = home
        match fact:
            case m.EngineAttached():
                return self._attached(group, engine, fact, now)
            case m.EngineFaulted():
                return self._faulted(group, engine, fact, now)
            case m.EngineHeld():
                return self._held(group, engine, fact, now)
            case m.EngineRecovered():
                return self._recovered(group, engine, fact, now)
            case m.RecoveryAborted():
                return self._recovery_failed(group, engine, fact.fault, now) if _answers(fact, group, engine) else []
            case m.EngineAnswered():
                return self._answered(engine, fact)

    def lost(self, engine_id: int, why: str, now: float) -> list[Effect]:
        """An engine core's process is gone. Once the instance has ended, they all go: that is no news."""
        home = self._home.get(engine_id)
        if home is None or self._defeat is not None:
            return []
        return self._end(*home, f"engine core {engine_id} is gone: {why}")

    def _attached(self, group: LockstepGroup, engine: Engine, fact: m.EngineAttached, now: float) -> list[Effect]:
        if engine.pid is not None:
            return []
        if engine.state is EngineState.STARTING:  # else a fault was faster: only the details are news
            engine.move(Trigger.ATTACHED)
        engine.pid, engine.hooks, engine.ranks = fact.pid, fact.hooks, len(fact.workers)
        common = set.intersection(*(set(w.hooks) for w in fact.workers)) if fact.workers else set()
        engine.worker_hooks = tuple(sorted(common))
        of_workers = (what for w in fact.workers for what in w.unrebuildable)
        engine.unrebuildable = tuple(dict.fromkeys((*fact.unrebuildable, *of_workers)))
        return [self._publish(EventKind.ENGINE_ATTACHED, group, engine), *self._contain(group, now)]

    def _faulted(self, group: LockstepGroup, engine: Engine, fact: m.EngineFaulted, now: float) -> list[Effect]:
        if fact.epoch != group.epoch or group.is_expected(fact.fault):
            return []
        if engine.state is EngineState.RECOVERING:
            # It may have overtaken the report that the recovery worked: kept for that one. If not, whoever
            # still waits for this rank where they meet waits in vain.
            engine.fault_in_recovery = deeper(engine.fault_in_recovery, fact.fault)
            return _close_rendezvous(group)
        engine.begin_to_stop(Trigger.FAULT, now)
        effects = self._blame(group, engine, fact.fault, now) + self._contain(group, now)
        if group.in_state(EngineState.RECOVERING):
            effects += _close_rendezvous(group)  # their peer is in again and has failed again
        is_news = group.fault is fact.fault
        if is_news and (group.stands_paused or fact.fault.fault_class is FaultClass.UNRESPONSIVE):
            # Who does not answer will not come to stand still either.
            effects += self._decide(group, decide_repair, now)
        return effects

    def _blame(self, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
        """Take a fault into the group's incident. It is news where it goes deeper, or is a cause of its own."""
        if group.is_expected(fault):
            return []
        opens = group.open_incident(now)
        own_cause = engine.fault is None and (opens or fault.fault_class is not FaultClass.COMMUNICATOR)
        engine.faults += own_cause
        engine.fault = deeper(engine.fault, fault)
        is_news = group.blame(fault) or own_cause
        return [self._publish(EventKind.FAULT_REPORTED, group, engine, fault=fault)] if is_news else []

    def _contain(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Pause whoever still runs in a group of which somebody stands: it would wait for its peer for ever."""
        culprits = [e for e in group.engines if e.state in (EngineState.FAULTED, EngineState.PAUSED)]
        if not culprits:
            return []
        group.open_incident(now)
        reason = f"engine {culprits[0].engine_id} of its lockstep group stands still"
        effects: list[Effect] = []
        for engine in group.in_state(EngineState.HEALTHY):
            order = m.PauseEngine(command_id=self._new_command_id(), epoch=group.epoch)
            effects += self._order_pause(group, engine, order, reason, now)
        return effects

    def _order_pause(
        self, group: LockstepGroup, engine: Engine, order: m.PauseEngine, reason: str, now: float
    ) -> list[Effect]:
        engine.begin_to_stop(Trigger.PAUSE_ORDERED, now)
        group.broken |= not order.soft
        ordered = self._publish(EventKind.PAUSE_ORDERED, group, engine, command_id=order.command_id, reason=reason)
        return [Send(engine.engine_id, order), ordered]

    def _held(self, group: LockstepGroup, engine: Engine, fact: m.EngineHeld, now: float) -> list[Effect]:
        if fact.epoch != group.epoch:
            return []
        group.broken |= fact.broken
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
        effects.append(self._publish(EventKind.ENGINE_PAUSED, group, engine, fault=engine.fault))
        return effects + self._contain(group, now) + self._when_paused(group, now)

    def _when_paused(self, group: LockstepGroup, now: float) -> list[Effect]:
        if not group.stands_paused:
            return []
        group.affirmed_at = now
        return self._commands.paused(group.group_id) + self._decide(group, decide_repair, now)

    def _recovered(self, group: LockstepGroup, engine: Engine, fact: m.EngineRecovered, now: float) -> list[Effect]:
        if not _answers(fact, group, engine) or group.began_at is None:
            return []
        engine.move(Trigger.RECOVERED)
        engine.fault = engine.last_error = None
        engine.recoveries += 1
        recovered = self._publish(
            EventKind.ENGINE_RECOVERED,
            group,
            engine,
            command_id=fact.command_id,
            report=fact.report,
            interruption_s=now - group.began_at,
        )
        # A peer may have failed meanwhile: then this one must not run on until the last one is done.
        return [recovered, *self._contain(group, now), *self._when_recovery_is_over(group, now)]

    def _recovery_failed(self, group: LockstepGroup, engine: Engine, fault: Fault, now: float) -> list[Effect]:
        fault = deeper(engine.fault_in_recovery, fault)
        engine.move(Trigger.RECOVERY_FAILED)
        engine.fault, engine.fault_in_recovery = fault, None
        engine.last_error = fault.summary()
        engine.faults += 1
        group.blame(fault)
        group.broken = True
        failed = self._publish(EventKind.RECOVERY_FAILED, group, engine, command_id=group.last_command_id, fault=fault)
        effects = [failed, *_close_rendezvous(group)]
        return effects + self._contain(group, now) + self._when_recovery_is_over(group, now)

    def _when_recovery_is_over(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Once no member is recovering any more: closed if all are healthy, else the group stands paused again."""
        if group.in_state(EngineState.RECOVERING):
            return []
        command_id, group.command_id = group.command_id, None
        if len(group.in_state(EngineState.HEALTHY)) == len(group.engines):
            group.close_incident()
            return self._commands.ended(command_id, group.group_id) + self._overtaken(group, now)
        error = group.fault.summary() if group.fault is not None else "an engine stands still again"
        settled = self._commands.ended(command_id, group.group_id, error)
        return settled + self._overtaken(group, now) + self._when_paused(group, now)

    def _overtaken(self, group: LockstepGroup, now: float) -> list[Effect]:
        """Faults that were reported before the recovery that they followed."""
        effects: list[Effect] = []
        for engine in group.engines:
            fault, engine.fault_in_recovery = engine.fault_in_recovery, None
            if fault is not None:
                engine.begin_to_stop(Trigger.FAULT, now)
                effects += self._blame(group, engine, fault, now)
        return effects + self._contain(group, now)

    def _answered(self, engine: Engine, fact: m.EngineAnswered) -> list[Effect]:
        if engine.armed.pop(fact.command_id, None) is None:
            return []
        settled = Settle(fact.command_id, error=fact.refused, refused=fact.refused is not None)
        if fact.refused is not None:
            return [settled]
        group, _ = self._home[engine.engine_id]
        return [self._publish(EventKind.FAULT_ARMED, group, engine, command_id=fact.command_id), settled]

    # ---- instructions from outside

    def retry(self, command_id: str, engine_ids: Sequence[int], now: float) -> list[Effect]:
        """Let the groups of some engines go on, or every group that stands paused when none is named.

        Raises:
            UnknownEngine: no such engine.
            InstructionConflict: one is not paused, or a command is already under way.
        """
        return self._go_on("retry", command_id, self._choose(engine_ids, lambda g: g.stands_paused), now)

    def resume(self, command_id: str, engine_ids: Sequence[int], now: float) -> list[Effect]:
        """Let groups go on that were paused by hand. Raises as `retry` does."""
        groups = self._choose(engine_ids, lambda g: g.paused_by_hand)
        for group in groups:
            if group.stands_paused and not group.paused_by_hand:
                raise InstructionConflict(
                    f"engine {group.engine_ids[0]} stands paused after a fault, not by hand",
                    state=EngineState.PAUSED,
                    hint="retry lets it go on",
                )
        return self._go_on("resume", command_id, groups, now)

    def pause(self, command_id: str, engine_ids: Sequence[int], soft: bool, now: float) -> list[Effect]:
        """Pause the groups of some engines, or all. Raises `UnknownEngine` or `InstructionConflict`."""
        groups = self._choose(engine_ids, lambda _: True)
        self._refuse_if_ended_or_repeated(groups[0], command_id)
        for group in groups:
            refuse_unless_healthy(group)
            refuse_unless_it_can_go_on(group, soft)
        self._commands.begin(command_id, [g.group_id for g in groups], awaits_pause=True)
        effects: list[Effect] = []
        for group in groups:
            group.open_incident(now)
            group.paused_by_hand, group.soft = True, soft
            order = m.PauseEngine(command_id=command_id, epoch=group.epoch, soft=soft)
            for engine in group.engines:
                effects += self._order_pause(group, engine, order, "asked for", now)
        return effects

    def arm(self, command_id: str, spec: InjectionSpec, now: float) -> list[Effect]:
        """Arm a fault. Raises `UnknownEngine`, or `InstructionConflict` where nothing can be armed."""
        group, engine = self._find(spec.engine_id)
        self._refuse_if_ended_or_repeated(group, command_id)
        engine.armed[command_id] = now
        return [Send(engine.engine_id, m.ArmFault(command_id=command_id, spec=spec))]

    def _go_on(self, what: str, command_id: str, groups: Sequence[LockstepGroup], now: float) -> list[Effect]:
        self._refuse_if_ended_or_repeated(groups[0], command_id)
        for group in groups:
            refuse_unless_paused(group, what)
        self._commands.begin(command_id, [g.group_id for g in groups])
        return [effect for group in groups for effect in self._order_recovery(group, command_id, now)]

    def _refuse_if_ended_or_repeated(self, group: LockstepGroup, command_id: str) -> None:
        if self._defeat is not None:
            raise InstructionConflict(f"the instance has ended: {self._defeat}", state=EngineState.DEAD)
        armed = any(command_id in engine.armed for _, engine in self._home.values())
        if armed or self._commands.knows(command_id):
            raise InstructionConflict(
                f"a command with the id {command_id} is already under way",
                state=group.engines[0].state,
                hint="every command needs an id of its own",
            )

    def _choose(self, engine_ids: Sequence[int], fitting: Callable[[LockstepGroup], bool]) -> Sequence[LockstepGroup]:
        """The groups of the named engines; else every fitting one; else one that says why none fits."""
        if engine_ids:
            named = {self._find(i)[0].group_id for i in engine_ids}
            return [g for g in self._groups if g.group_id in named]
        unwell = (g for g in self._groups if g.began_at is not None)
        return [g for g in self._groups if fitting(g)] or [next(unwell, self._groups[0])]

    def _find(self, engine_id: int) -> tuple[LockstepGroup, Engine]:
        if engine_id not in self._home:
            known = ", ".join(str(i) for i in self._home)
            raise UnknownEngine(f"there is no engine {engine_id}", hint=f"known: {known}")
        return self._home[engine_id]

    # ---- time

    def tick(self, now: float) -> list[Effect]:
        """Everything that happens because time has passed. Call a few times a second."""
        effects: list[Effect] = []
        for group in self._groups:
            if self._defeat is None:
                effects += self._forget_unanswered(group, now) + self._tick_group(group, now)
        return effects

    def _tick_group(self, group: LockstepGroup, now: float) -> list[Effect]:
        bound_s = self._config.containment_timeout_s
        if moving := group.in_state(*STOPPING):
            first = min(moving, key=lambda e: e.stopping_since)
            if now - first.stopping_since >= bound_s:
                return self._end(group, first, _did_not_stand_still(first, bound_s))
            return self._harden(group, first.stopping_since, now) + self._affirm(group, now)
        if recovering := group.in_state(EngineState.RECOVERING):
            if now - group.command_at >= self._recovery_bound_s(group):
                late = f"engine {recovering[0].engine_id} did not end its recovery in time"
                return self._end(group, recovering[0], late)
            return self._affirm(group, now)
        if group.stands_paused:
            return self._affirm(group, now) + self._decide(group, decide_wait, now, only=Action.END)
        return self._affirm(group, now)

    def _recovery_bound_s(self, group: LockstepGroup) -> float:
        """Longer than every bounded wait of the host's recovery: what it says itself says more."""
        c = self._config
        return c.containment_timeout_s + c.drain_timeout_s + (c.rebuild_timeout_s if group.rebuilding else 0.0)

    def _harden(self, group: LockstepGroup, since: float, now: float) -> list[Effect]:
        could_not_go_on = group.unrebuildable and not group.is_alone
        if not group.soft or could_not_go_on or now - since < SOFT_PAUSE_S:
            return []
        group.soft, group.broken = False, True
        order = m.PauseEngine(command_id=self._new_command_id(), epoch=group.epoch)
        return [Send(engine_id, order) for engine_id in group.engine_ids]

    def _affirm(self, group: LockstepGroup, now: float) -> list[Effect]:
        # Well before an engine core takes the silence for the client's end.
        patience_s = self._config.engine_recovery_timeout_s + self._config.containment_timeout_s
        if now - group.affirmed_at < min(AFFIRM_S, patience_s / 3):
            return []
        group.affirmed_at = now
        order = m.PauseEngine(command_id="", epoch=group.epoch, soft=True)
        return [Send(e.engine_id, order) for e in group.in_state(EngineState.PAUSED)]

    def _forget_unanswered(self, group: LockstepGroup, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for engine in group.engines:
            late = [c for c, at in engine.armed.items() if now - at >= self._config.drain_timeout_s]
            for command_id in late:
                del engine.armed[command_id]
            effects += [Settle(c, error=f"engine {engine.engine_id} did not answer in time") for c in late]
        return effects

    # ---- deciding and acting

    def _decide(self, group: LockstepGroup, decide: Decide, now: float, only: Action | None = None) -> list[Effect]:
        decision = decide(now, _incident(group, now), self._config)
        if only is not None and decision.action is not only:
            return []
        group.reason = decision.reason
        spokesman = _spokesman(group)
        made = self._publish(EventKind.DECISION_MADE, group, spokesman, reason=decision.reason)
        match decision.action:
            case Action.RETRY:
                command_id = self._new_command_id()
                self._commands.begin(command_id, [group.group_id])
                return [made, *self._order_recovery(group, command_id, now)]
            case Action.END:
                return [made, *self._end(group, spokesman, decision.reason)]
            case Action.AWAIT:
                return [made]

    def _order_recovery(self, group: LockstepGroup, command_id: str, now: float) -> list[Effect]:
        if group.paused_by_hand:
            group.waiting_since = now  # the pause was no wait for an instruction
        if not group.paused_by_hand or group.fault is not None:
            group.retried_at = (*recent(group.retried_at, now, self._config.retry_window_s), now)
        group.epoch += 1
        group.command_id = group.last_command_id = command_id
        group.command_at = now
        group.rebuilding = group.needs_rebuild
        order = OrderRecovery(group.engine_ids, command_id, group.epoch, rebuild=group.rebuilding)
        group.fault, group.broken, group.paused_by_hand, group.soft = None, False, False, False
        for engine in group.engines:
            engine.move(Trigger.RECOVERY_ORDERED)
        started = (self._publish(EventKind.RECOVERY_STARTED, group, e, command_id=command_id) for e in group.engines)
        return [order, *started]

    def _end(self, group: LockstepGroup, engine: Engine, reason: str) -> list[Effect]:
        group.reason = self._defeat = reason
        for _, other in self._home.values():
            other.move(Trigger.DEFEATED)
        effects = self._commands.end_all(reason) + self._settle_armed(reason)
        ended = self._publish(EventKind.INSTANCE_DEFEATED, group, engine, fault=engine.fault, reason=reason)
        stop = m.EndEngine(command_id=self._new_command_id(), reason=reason)
        return [*effects, ended, *(Send(i, stop) for i in self._home), End(reason)]

    def _settle_armed(self, error: str) -> list[Effect]:
        effects: list[Effect] = []
        for _, engine in self._home.values():
            effects += [Settle(c, error=error) for c in engine.armed]
            engine.armed.clear()
        return effects

    def _publish(self, kind: EventKind, group: LockstepGroup, engine: Engine, **about: object) -> Publish:
        self._sequence += 1
        event = Event(
            sequence=self._sequence,
            at=self._wall_clock(),
            kind=kind,
            engine_id=engine.engine_id,
            state=engine.state,
            epoch=group.epoch,
            **about,  # type: ignore[arg-type]
        )
        return Publish(event, self.view())


def _close_rendezvous(group: LockstepGroup) -> list[Effect]:
    """Nobody is to wait there for a rank that will not come."""
    return [CloseRendezvous(group.engine_ids, group.epoch)] if group.rebuilding else []


def _answers(fact: m.EngineRecovered | m.RecoveryAborted, group: LockstepGroup, engine: Engine) -> bool:
    is_under_way = fact.command_id == group.command_id and fact.epoch == group.epoch
    return is_under_way and engine.state is EngineState.RECOVERING


def _incident(group: LockstepGroup, now: float) -> Incident:
    return Incident(
        fault=group.fault,
        began_at=now if group.began_at is None else group.waiting_since,
        retried_at=group.retried_at,
        broken=group.needs_rebuild,
        unrebuildable=group.unrebuildable,
        paused_by_hand=group.paused_by_hand,
    )


def _spokesman(group: LockstepGroup) -> Engine:
    """The engine that an event about its whole group names: the one that is to blame."""
    blamed = group.fault.engine_id if group.fault is not None else None
    return next((e for e in group.engines if e.engine_id == blamed), group.engines[0])


def _did_not_stand_still(engine: Engine, bound_s: float) -> str:
    if engine.state is EngineState.PAUSING:
        return f"engine {engine.engine_id} was told to pause and did not stand still within {bound_s:g} s"
    return f"engine {engine.engine_id} reported a fault and did not stand still within {bound_s:g} s"


def unresponsive(engine_id: int, what: str) -> Fault:
    """The fault of something that did not answer within its bound."""
    return Fault(fault_class=FaultClass.UNRESPONSIVE, error_type="PeerSilent", message=what, engine_id=engine_id)
