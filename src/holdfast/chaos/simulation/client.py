"""The simulated owner of the engine cores: feeds the shipped instance, performs its effects, checks the laws."""

from __future__ import annotations

import itertools

from holdfast.chaos.simulation.world import World
from holdfast.core.errors import CommandConflict
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Retry
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
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState

CALM = (EngineState.STARTING, EngineState.HEALTHY, EngineState.LEFT_OUT)


class SimulatedClient:
    """Shell of the instance, as the ClientSentinel is in a server."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ids = itertools.count(1)
        self.instance = Instance(
            [(i,) for i in range(len(world.conditions.engines))],
            world.conditions.config,
            wall_clock=lambda: world.time.now,
            new_command_id=lambda: f"own-{next(self._ids)}",
            instance_id="simulated",
        )
        self.events: list[Event] = []
        self.ended: str | None = None
        self._open_commands: set[str] = set()
        self._uncalm_since: dict[int, float] = {}
        self._view: InstanceView | None = None  # None after every call that may have changed the instance

    def view(self) -> InstanceView:
        """Return the present state of the instance."""
        if self._view is None:
            self._view = self.instance.view()
        return self._view

    def deliver(self, data: bytes) -> None:
        """Take a message of an engine core."""
        fact = m.decode_from_engine(data)
        before = self.instance.view()
        known = before.engine(fact.engine_id)
        assert known is not None
        stale = getattr(fact, "epoch", known.epoch) != known.epoch
        effects = self.instance.observe(fact, self._world.time.now)
        self._world.note(f"{'stale ' if stale else ''}{type(fact).__name__} of {fact.engine_id}")
        changed = bool(effects) or self.instance.view() != before
        self._world.law(not (stale and changed), "a report of another epoch changes nothing")
        self._world.law(not (before.defeat and changed), "after the end nothing changes anything")
        self._perform(effects)
        after = self.instance.view()
        if effects and after.defeat is None:  # the end is everybody's
            others = [(before.engine(e.engine_id), e) for e in after.engines if e.engine_id != fact.engine_id]
            self._world.law(all(a == b for a, b in others), "a neighbour never notices")

    def tick(self) -> None:
        self._perform(self.instance.tick(self._world.time.now))
        for engine in self.view().engines:
            if engine.state in CALM or self.ended is not None:
                self._uncalm_since.pop(engine.engine_id, None)
            else:
                since = self._uncalm_since.setdefault(engine.engine_id, self._world.time.now)
                in_time = self._world.time.now - since <= self._world.conditions.recovery_bound_s
                self._world.law(in_time, "a recovery ends in bounded time")

    def lost(self, engine_id: int, pid: int | None) -> None:
        self._perform(self.instance.lost(engine_id, "killed by signal 9", self._world.time.now, pid=pid))

    def _perform(self, effects: list[Effect]) -> None:
        self._view = None
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.engine_id, effect.message)
                case BeginRecovery():
                    self._begin_recovery(effect)
                case ReplaceEngine():
                    self._world.replace(effect)
                case LeaveOut():
                    self._world.engines[effect.engine_id].stop()
                case CloseRendezvous():
                    pass
                case Publish():
                    self._published(effect)
                case Settle():
                    self._world.law(effect.command_id in self._open_commands, "a command is settled once")
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
        self._world.carry(message, self._world.engines[engine_id].deliver)

    def _published(self, effect: Publish) -> None:
        event = effect.event
        self._world.note(
            f"event {event.sequence}: {event.kind} of {event.engine_id}, {event.state}, epoch {event.epoch}"
        )
        self.events.append(event)
        self._world.law(event.sequence == len(self.events) == effect.view.sequence, "events have no gaps")
        if event.engine_id is not None and event.kind is EventKind.ENGINE_LOST:
            self._world.front_end.lost(event.engine_id)
        if event.engine_id is not None and event.kind is EventKind.ENGINE_RESTARTED:
            self._world.front_end.returned(event.engine_id)
        stands = event.kind in (EventKind.ENGINE_PAUSED, EventKind.RECOVERY_FAILED)
        if stands and event.engine_id is not None and self._world.conditions.policy == "external":
            self._ask_operator(event.engine_id)

    def _ask_operator(self, engine_id: int) -> None:
        if self._world.dice.random() < self._world.conditions.operator_answers:
            thinking_s = self._world.dice.uniform(0.0, 3.0)
            self._world.time.after(thinking_s, lambda: self._instruct(engine_id))

    def _instruct(self, engine_id: int) -> None:
        command = Retry(command_id=f"operator-{next(self._ids)}", engine_ids=(engine_id,))
        try:
            self._perform(self.instance.submit(command, self._world.time.now))
        except CommandConflict as conflict:
            self._world.note(conflict)

    def _end(self, reason: str) -> None:
        self._world.law(self.ended is None, "an instance ends once")
        self._world.law(bool(reason), "an end has a reason")
        self.ended = reason
        for engine in self._world.engines:
            engine.stop()
        self._world.law(not self._open_commands, "the end settles every command")
