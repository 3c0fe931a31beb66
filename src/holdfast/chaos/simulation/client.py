"""What the ClientSentinel is in earnest: feeds the instance, carries out its effects, checks the laws."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from holdfast.core.errors import CommandConflict
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import (
    BeginRecovery,
    CloseRendezvous,
    Effect,
    End,
    LeaveOut,
    Publish,
    ReplaceEngine,
    Send,
    Settle,
)
from holdfast.core.protocol.events import Event, EventKind
from holdfast.core.protocol.rendezvous import Rendezvous
from holdfast.core.states import EngineState

if TYPE_CHECKING:
    from holdfast.chaos.simulation.run import Simulation

CALM = (EngineState.STARTING, EngineState.HEALTHY, EngineState.LEFT_OUT)


class SimulatedClient:
    """What the ClientSentinel is in earnest: feeds the instance, carries out its effects, checks the laws."""

    def __init__(self, simulation: Simulation) -> None:
        self._sim = simulation
        self._ids = itertools.count(1)
        self.instance = Instance(
            [(i,) for i in range(len(simulation.scenario.engines))],
            simulation.scenario.config,
            wall_clock=lambda: simulation.time.now,
            new_command_id=lambda: f"own-{next(self._ids)}",
        )
        self.events: list[Event] = []
        self.ended: str | None = None
        self._open_commands: set[str] = set()
        self._uncalm_since: dict[int, float] = {}

    def deliver(self, data: bytes) -> None:
        fact = m.decode_from_engine(data)
        before = self.instance.view()
        known = before.engine(fact.engine_id)
        assert known is not None
        stale = getattr(fact, "epoch", known.epoch) != known.epoch
        effects = self.instance.observe(fact, self._sim.time.now)
        self._sim.note(f"{'stale ' if stale else ''}{type(fact).__name__} of {fact.engine_id}")
        changed = bool(effects) or self.instance.view() != before
        self._sim.law(not (stale and changed), "a report of another epoch changes nothing")
        self._sim.law(not (before.defeat and changed), "after the end nothing changes anything")
        self._perform(effects)
        after = self.instance.view()
        if effects and after.defeat is None:  # the end is everybody's
            others = [(before.engine(e.engine_id), e) for e in after.engines if e.engine_id != fact.engine_id]
            self._sim.law(all(a == b for a, b in others), "a neighbour never notices")

    def tick(self) -> None:
        self._perform(self.instance.tick(self._sim.time.now))
        for engine in self.instance.view().engines:
            if engine.state in CALM or self.ended is not None:
                self._uncalm_since.pop(engine.engine_id, None)
            else:
                since = self._uncalm_since.setdefault(engine.engine_id, self._sim.time.now)
                in_time = self._sim.time.now - since <= self._sim.scenario.recovery_bound_s
                self._sim.law(in_time, "a recovery ends in bounded time")

    def lost(self, engine_id: int) -> None:
        self._perform(self.instance.lost(engine_id, "killed by signal 9", self._sim.time.now))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.engine_id, effect.message)
                case BeginRecovery():
                    self._begin_recovery(effect)
                case ReplaceEngine():
                    self._sim.replace(effect)
                case LeaveOut():
                    self._sim.engines[effect.engine_id].stop()
                case CloseRendezvous():
                    pass
                case Publish():
                    self._published(effect)
                case Settle():
                    self._sim.law(effect.command_id in self._open_commands, "a command is settled once")
                    self._open_commands.discard(effect.command_id)
                case End():
                    self._end(effect.reason)

    def _begin_recovery(self, effect: BeginRecovery) -> None:
        self._open_commands.add(effect.command_id)
        meet = Rendezvous("memory", 0, effect.epoch) if effect.rebuild else None
        for engine_id in effect.engine_ids:
            replace = effect.replace.get(engine_id, ())
            order = m.RecoverEngine(command_id=effect.command_id, epoch=effect.epoch, rendezvous=meet, replace=replace)
            self._send(engine_id, order)

    def _send(self, engine_id: int, message: m.ToEngine) -> None:
        self._sim.carry(message, self._sim.engines[engine_id].deliver)

    def _published(self, effect: Publish) -> None:
        event = effect.event
        self._sim.note(f"event {event.sequence}: {event.kind} of {event.engine_id}, {event.state}, epoch {event.epoch}")
        self.events.append(event)
        self._sim.law(event.sequence == len(self.events) == effect.view.sequence, "events have no gaps")
        if event.engine_id is not None and event.kind is EventKind.ENGINE_LOST:
            self._sim.front_end.lost(event.engine_id)
        if event.engine_id is not None and event.kind is EventKind.ENGINE_RESTARTED:
            self._sim.front_end.returned(event.engine_id)
        stands = event.kind in (EventKind.ENGINE_PAUSED, EventKind.RECOVERY_FAILED)
        if stands and event.engine_id is not None and self._sim.scenario.policy == "external":
            self._ask_operator(event.engine_id)

    def _ask_operator(self, engine_id: int) -> None:
        if self._sim.dice.random() < self._sim.scenario.operator_answers:
            thinking_s = self._sim.dice.uniform(0.0, 3.0)
            self._sim.time.after(thinking_s, lambda: self._instruct(engine_id))

    def _instruct(self, engine_id: int) -> None:
        command_id = f"operator-{next(self._ids)}"
        try:
            self._perform(self.instance.retry(command_id, (engine_id,), self._sim.time.now))
        except CommandConflict as conflict:
            self._sim.note(conflict)

    def _end(self, reason: str) -> None:
        self._sim.law(self.ended is None, "an instance ends once")
        self._sim.law(bool(reason), "an end has a reason")
        self.ended = reason
        for engine in self._sim.engines:
            engine.stop()
        self._sim.law(not self._open_commands, "the end settles every command")
