"""The instance as its ClientSentinel knows it: facts and instructions in, effects out.

Pure: time is an argument, effects are returned, nothing is sent from here. One `Instance` follows
any number of engines; each has its own state, epoch, incident and command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from holdfast.core import messages as m
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import Effect, End, Publish, Send, Settle
from holdfast.core.errors import InstructionConflict, UnknownEngine
from holdfast.core.events import EngineView, Event, EventKind, InstanceView
from holdfast.core.faults import Fault, FaultClass, deeper
from holdfast.core.injection import InjectionSpec
from holdfast.core.policy import Action, Decision, Incident, decide_repair, decide_wait, recent
from holdfast.core.states import EngineState, Trigger, next_state


@dataclass
class _Engine:
    engine_id: int
    state: EngineState = EngineState.STARTING
    epoch: int = 0
    pid: int | None = None
    ranks: int = 0
    hooks: tuple[str, ...] = ()
    worker_hooks: tuple[str, ...] = ()
    fault: Fault | None = None
    fault_in_recovery: Fault | None = None
    reason: str | None = None
    began_at: float = 0.0
    command_id: str | None = None
    command_at: float = 0.0
    last_command_id: str | None = None
    last_error: str | None = None
    retried_at: tuple[float, ...] = ()
    recoveries: int = 0
    faults: int = 0
    armed: dict[str, float] = field(default_factory=dict)

    def move(self, trigger: Trigger) -> None:
        self.state = next_state(self.state, trigger)

    def view(self) -> EngineView:
        return EngineView(
            engine_id=self.engine_id,
            state=self.state,
            epoch=self.epoch,
            pid=self.pid,
            ranks=self.ranks,
            hooks=self.hooks,
            worker_hooks=self.worker_hooks,
            fault=self.fault,
            reason=self.reason,
            last_command_id=self.last_command_id,
            last_error=self.last_error,
            recoveries=self.recoveries,
            faults=self.faults,
        )


class Instance:
    """Reducer over the facts of all engines. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        engine_ids: Iterable[int],
        config: HoldfastConfig,
        *,
        wall_clock: Callable[[], float],
        new_command_id: Callable[[], str],
        notify_address: str = "",
    ) -> None:
        self._engines = {i: _Engine(i) for i in engine_ids}
        self._config = config
        self._wall_clock = wall_clock
        self._new_command_id = new_command_id
        self._notify_address = notify_address
        self._sequence = 0
        self._defeat: str | None = None

    # ---- what can be asked

    def view(self) -> InstanceView:
        return InstanceView(
            engines=tuple(e.view() for e in self._engines.values()),
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
        engine = self._engines.get(fact.engine_id)
        if engine is None or self._defeat is not None:
            return []
        match fact:
            case m.EngineAttached():
                return self._attached(engine, fact)
            case m.EngineFaulted():
                return self._faulted(engine, fact, now)
            case m.EngineHeld():
                return self._held(engine, fact, now)
            case m.EngineRecovered():
                return self._recovered(engine, fact, now)
            case m.RecoveryAborted():
                return self._aborted(engine, fact, now)
            case m.EngineAnswered():
                return self._answered(engine, fact)

    def lost(self, engine_id: int, why: str, now: float) -> list[Effect]:
        """An engine core's process is gone. Once the instance has ended, they all go: that is no news."""
        engine = self._engines.get(engine_id)
        if engine is None or self._defeat is not None:
            return []
        return self._end(engine, f"engine core {engine_id} is gone: {why}")

    def _attached(self, engine: _Engine, fact: m.EngineAttached) -> list[Effect]:
        if engine.pid is not None:
            return []
        if engine.state is EngineState.STARTING:  # else a fault was faster: only the details are news
            engine.move(Trigger.ATTACHED)
        engine.pid, engine.hooks, engine.ranks = fact.pid, fact.hooks, len(fact.workers)
        common = set.intersection(*(set(w.hooks) for w in fact.workers)) if fact.workers else set()
        engine.worker_hooks = tuple(sorted(common))
        return [self._publish(EventKind.ENGINE_ATTACHED, engine)]

    def _faulted(self, engine: _Engine, fact: m.EngineFaulted, now: float) -> list[Effect]:
        if fact.epoch != engine.epoch:
            return []
        was = engine.state
        engine.move(Trigger.FAULT)
        match was:
            case EngineState.RECOVERING:
                # It may have overtaken the report that the recovery worked: kept for that one.
                engine.fault_in_recovery = fact.fault
                return []
            case EngineState.FAULTED | EngineState.PAUSED:
                return self._also_faulted(engine, fact.fault, now)
            case _:
                return [self._open_incident(engine, fact.fault, now)]

    def _open_incident(self, engine: _Engine, fault: Fault, now: float) -> Publish:
        engine.fault, engine.began_at, engine.reason = fault, now, None
        engine.faults += 1
        return self._publish(EventKind.FAULT_REPORTED, engine, fault=fault)

    def _also_faulted(self, engine: _Engine, fault: Fault, now: float) -> list[Effect]:
        """A further fault of an open incident is news only if it goes deeper than what is known."""
        if deeper(engine.fault, fault) is engine.fault:
            return []
        engine.fault = fault
        effects: list[Effect] = [self._publish(EventKind.FAULT_REPORTED, engine, fault=fault)]
        if engine.state is EngineState.PAUSED:
            effects += self._decide(engine, decide_repair, now)
        return effects

    def _held(self, engine: _Engine, fact: m.EngineHeld, now: float) -> list[Effect]:
        if fact.epoch != engine.epoch or engine.state is EngineState.PAUSED:
            return []
        if engine.state is EngineState.RECOVERING:
            # In this epoch it was let back in and stands again; how the command ended was never heard.
            return self._recovery_failed(engine, fact.fault, now)
        effects: list[Effect] = []
        if engine.state is not EngineState.FAULTED:
            engine.move(Trigger.FAULT)
            effects.append(self._open_incident(engine, fact.fault, now))
        engine.move(Trigger.HELD)
        engine.fault = deeper(engine.fault, fact.fault)
        effects.append(self._publish(EventKind.ENGINE_PAUSED, engine, fault=engine.fault))
        return effects + self._decide(engine, decide_repair, now)

    def _recovered(self, engine: _Engine, fact: m.EngineRecovered, now: float) -> list[Effect]:
        if not _answers(fact, engine):
            return []
        engine.move(Trigger.RECOVERED)
        interruption_s, overtook = now - engine.began_at, engine.fault_in_recovery
        engine.fault, engine.fault_in_recovery, engine.reason = None, None, None
        engine.command_id, engine.last_error = None, None
        engine.recoveries += 1
        effects: list[Effect] = [
            self._publish(
                EventKind.ENGINE_RECOVERED,
                engine,
                command_id=fact.command_id,
                report=fact.report,
                interruption_s=interruption_s,
            ),
            Settle(fact.command_id),
        ]
        if overtook is not None:
            engine.move(Trigger.FAULT)
            effects.append(self._open_incident(engine, overtook, now))
        return effects

    def _aborted(self, engine: _Engine, fact: m.RecoveryAborted, now: float) -> list[Effect]:
        return self._recovery_failed(engine, fact.fault, now) if _answers(fact, engine) else []

    def _recovery_failed(self, engine: _Engine, fault: Fault, now: float) -> list[Effect]:
        assert engine.command_id is not None
        command_id, fault = engine.command_id, deeper(engine.fault_in_recovery, fault)
        engine.move(Trigger.RECOVERY_FAILED)
        engine.command_id, engine.fault, engine.fault_in_recovery = None, fault, None
        engine.last_error = fault.summary()
        engine.faults += 1
        failed = self._publish(EventKind.RECOVERY_FAILED, engine, command_id=command_id, fault=fault)
        settled = Settle(command_id, error=engine.last_error)
        return [failed, settled, *self._decide(engine, decide_repair, now)]

    def _answered(self, engine: _Engine, fact: m.EngineAnswered) -> list[Effect]:
        if engine.armed.pop(fact.command_id, None) is None:
            return []
        settled = Settle(fact.command_id, error=fact.refused, refused=fact.refused is not None)
        if fact.refused is not None:
            return [settled]
        return [self._publish(EventKind.FAULT_ARMED, engine, command_id=fact.command_id), settled]

    # ---- instructions from outside

    def retry(self, command_id: str, engine_id: int | None, now: float) -> list[Effect]:
        """Retry one engine, or the one that stands paused when none is named.

        Raises:
            UnknownEngine: no such engine.
            InstructionConflict: it is not paused, or a command is already under way.
        """
        engine = self._choose(engine_id)
        self._refuse_if_ended_or_repeated(engine, command_id)
        if engine.command_id is not None:
            raise InstructionConflict(
                f"command {engine.command_id} is already under way on engine {engine.engine_id}",
                state=engine.state,
                hint="wait for it to end; GET /fault_tolerance/status shows it",
            )
        if engine.state is not EngineState.PAUSED:
            raise InstructionConflict(
                f"engine {engine.engine_id} is {engine.state}, there is nothing to retry",
                state=engine.state,
                hint="retry makes sense while an engine is paused",
            )
        return self._order_retry(engine, command_id, now)

    def arm(self, command_id: str, spec: InjectionSpec, now: float) -> list[Effect]:
        """Arm a fault. Raises `UnknownEngine`, or `InstructionConflict` where nothing can be armed."""
        engine = self._choose(spec.engine_id)
        self._refuse_if_ended_or_repeated(engine, command_id)
        engine.armed[command_id] = now
        return [Send(engine.engine_id, m.ArmFault(command_id=command_id, spec=spec))]

    def _refuse_if_ended_or_repeated(self, engine: _Engine, command_id: str) -> None:
        if self._defeat is not None:
            raise InstructionConflict(f"the instance has ended: {self._defeat}", state=EngineState.DEAD)
        if any(command_id == e.command_id or command_id in e.armed for e in self._engines.values()):
            raise InstructionConflict(
                f"a command with the id {command_id} is already under way",
                state=engine.state,
                hint="every command needs an id of its own",
            )

    def _choose(self, engine_id: int | None) -> _Engine:
        if engine_id is None:
            paused = (e for e in self._engines.values() if e.state is EngineState.PAUSED)
            return next(paused, next(iter(self._engines.values())))
        if engine_id not in self._engines:
            known = ", ".join(str(i) for i in self._engines)
            raise UnknownEngine(f"there is no engine {engine_id}", hint=f"known: {known}")
        return self._engines[engine_id]

    # ---- time

    def tick(self, now: float) -> list[Effect]:
        """Everything that happens because time has passed. Call a few times a second."""
        effects: list[Effect] = []
        for engine in self._engines.values():
            if self._defeat is None:
                effects += self._tick_engine(engine, now)
        return effects

    def _tick_engine(self, engine: _Engine, now: float) -> list[Effect]:
        bound_s = self._config.containment_timeout_s
        effects = self._forget_unanswered(engine, now)
        match engine.state:
            case EngineState.FAULTED if now - engine.began_at >= bound_s:
                return effects + self._end(
                    engine, f"engine {engine.engine_id} reported a fault and did not stand still within {bound_s:g} s"
                )
            case EngineState.RECOVERING if now - engine.command_at >= bound_s + self._config.drain_timeout_s:
                return effects + self._end(engine, f"engine {engine.engine_id} did not end its recovery in time")
            case EngineState.PAUSED:
                return effects + self._decide(engine, decide_wait, now, only=Action.END)
        return effects

    def _forget_unanswered(self, engine: _Engine, now: float) -> list[Effect]:
        late = [c for c, at in engine.armed.items() if now - at >= self._config.drain_timeout_s]
        for command_id in late:
            del engine.armed[command_id]
        return [Settle(c, error=f"engine {engine.engine_id} did not answer in time") for c in late]

    # ---- deciding and acting

    def _decide(
        self,
        engine: _Engine,
        decide: Callable[[float, Incident, HoldfastConfig], Decision],
        now: float,
        only: Action | None = None,
    ) -> list[Effect]:
        assert engine.fault is not None
        incident = Incident(fault=engine.fault, began_at=engine.began_at, retried_at=engine.retried_at)
        decision = decide(now, incident, self._config)
        if only is not None and decision.action is not only:
            return []
        engine.reason = decision.reason
        made = self._publish(EventKind.DECISION_MADE, engine, reason=decision.reason)
        match decision.action:
            case Action.RETRY:
                return [made, *self._order_retry(engine, self._new_command_id(), now)]
            case Action.END:
                return [made, *self._end(engine, decision.reason)]
            case Action.AWAIT:
                return [made]

    def _order_retry(self, engine: _Engine, command_id: str, now: float) -> list[Effect]:
        engine.move(Trigger.RECOVERY_ORDERED)
        engine.epoch += 1
        engine.command_id = engine.last_command_id = command_id
        engine.command_at = now
        engine.retried_at = (*recent(engine.retried_at, now, self._config.retry_window_s), now)
        started = self._publish(EventKind.RECOVERY_STARTED, engine, command_id=command_id)
        return [Send(engine.engine_id, m.RetryEngine(command_id=command_id, epoch=engine.epoch)), started]

    def _end(self, engine: _Engine, reason: str) -> list[Effect]:
        engine.move(Trigger.DEFEATED)
        engine.reason = self._defeat = reason
        effects = self._settle_everything(reason)
        ended = self._publish(EventKind.INSTANCE_DEFEATED, engine, fault=engine.fault, reason=reason)
        stop = m.EndEngine(command_id=self._new_command_id(), reason=reason)
        return [*effects, ended, Send(engine.engine_id, stop), End(reason)]

    def _settle_everything(self, error: str) -> list[Effect]:
        """The whole instance ends, and with it every command on any of its engines."""
        effects: list[Effect] = []
        for engine in self._engines.values():
            effects += [Settle(c, error=error) for c in (engine.command_id, *engine.armed) if c is not None]
            engine.command_id = None
            engine.armed.clear()
        return effects

    def _publish(self, kind: EventKind, engine: _Engine, **about: object) -> Publish:
        self._sequence += 1
        event = Event(
            sequence=self._sequence,
            at=self._wall_clock(),
            kind=kind,
            engine_id=engine.engine_id,
            state=engine.state,
            epoch=engine.epoch,
            **about,  # type: ignore[arg-type]
        )
        return Publish(event, self.view())


def _answers(fact: m.EngineRecovered | m.RecoveryAborted, engine: _Engine) -> bool:
    return fact.command_id == engine.command_id and fact.epoch == engine.epoch


def unresponsive(engine_id: int, what: str) -> Fault:
    """The fault of something that did not answer within its bound."""
    return Fault(fault_class=FaultClass.UNRESPONSIVE, error_type="PeerSilent", message=what, engine_id=engine_id)
