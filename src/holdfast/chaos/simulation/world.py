"""The world of one run: virtual time, dice, the link between client and engine cores, and the laws.

The parts of a simulation know the world, and each other only by the protocols here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from holdfast.chaos.simulation.conditions import Conditions
from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.virtual_time import VirtualTime
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import ReplaceEngine
from holdfast.core.protocol.events import InstanceView
from holdfast.hosts.fake import OutputToken


class LawBroken(AssertionError):
    """A run broke a law; the message names the seed that replays the run."""


class Client(Protocol):
    """The owner of the engine cores, seen from engine cores and front end."""

    def deliver(self, data: bytes) -> None: ...

    def lost(self, engine_id: int, pid: int | None) -> None: ...

    def view(self) -> InstanceView: ...


class Engine(Protocol):
    """An engine core, seen from client and front end."""

    @property
    def engine_id(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def deliver(self, data: bytes) -> None: ...

    def add(self, request: Request, history: list[int]) -> None: ...

    def abort(self, name: str) -> None: ...

    def stop(self) -> None: ...


class FrontEnd(Protocol):
    """The streams of all clients, seen from client and engine cores."""

    def expect(self, request: Request) -> None: ...

    def accept(self, request: Request, engine_id: int) -> None: ...

    def abort(self, name: str) -> None: ...

    def end(self, engine: Engine, request_ids: Iterable[str]) -> None: ...

    def deliver(self, engine: Engine, outputs: Iterable[OutputToken]) -> None: ...

    def lost(self, engine_id: int) -> None: ...

    def returned(self, engine_id: int) -> None: ...


class World(Protocol):
    """Everything that a part of a simulation may use."""

    conditions: Conditions
    time: VirtualTime
    wall_s: float
    dice: random.Random

    @property
    def client(self) -> Client: ...

    @property
    def front_end(self) -> FrontEnd: ...

    @property
    def engines(self) -> Sequence[Engine]: ...

    def replace(self, order: ReplaceEngine) -> None:
        """Start a replacement of an engine core."""
        ...

    def law(self, holds: bool, law: str) -> None:
        """Raise `LawBroken` unless the law holds."""
        ...

    def note(self, what: object) -> None:
        """Add a line to the trace that a broken law shows."""
        ...

    def carry(self, message: m.FromEngine | m.ToEngine, deliver: Callable[[bytes], None]) -> None:
        """Carry a message over the link, which may lose, repeat or delay the message."""
        ...


class BaseWorld:
    """Base of a run: time, dice, trace and the link."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self.time = VirtualTime()
        self.wall_s = 0.0  # of the wall clock when the run begins
        self.dice = random.Random(conditions.seed + 1)
        self.lost_messages = 0
        self._trace: deque[str] = deque(maxlen=40)

    def law(self, holds: bool, law: str) -> None:
        """Raise `LawBroken`, with the last lines of the trace, unless the law holds."""
        if not holds:
            trace = "\n  ".join(self._trace)
            raise LawBroken(f"{law}: broken by seed {self.conditions.seed} at {self.time.now:.3f} s\n  {trace}")

    def note(self, what: object) -> None:
        """Add a line to the trace."""
        self._trace.append(f"{self.time.now:8.3f} {what}")

    def carry(self, message: m.FromEngine | m.ToEngine, deliver: Callable[[bytes], None]) -> None:
        """Carry a message over the link between client and engine core, in the weather of the conditions."""
        weather, dice, data = self.conditions.weather, self.dice, m.encode(message)
        copies = 1 + (dice.random() < weather.duplication)
        if dice.random() < weather.loss or type(message) in weather.loses:
            self.lost_messages += 1
            self.note(f"lost: {type(message).__name__}")
            copies -= 1
        for _ in range(copies):
            self.time.after(0.0001 + dice.random() * weather.delay_s, lambda: deliver(data))
