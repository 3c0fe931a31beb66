"""One run: the real `Instance` and pretend engines, joined by a link that fails, on virtual time.

Checks the laws while it runs. Never sleeps, reads no clock, starts no thread: a seed replays a run.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.chaos.simulation.client import CALM, SimulatedClient
from holdfast.chaos.simulation.engine import SimulatedEngine
from holdfast.chaos.simulation.scenario import Scenario, draw_scenario
from holdfast.chaos.simulation.virtual_time import VirtualTime
from holdfast.core import messages as m
from holdfast.core.events import EventKind

TICK_S = 0.25


class LawBroken(AssertionError):
    """What a run did that it must not; names the seed that replays it."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to. `ended` is the last line of an instance that gave up."""

    seed: int
    ended: str | None
    recoveries: int
    failed_recoveries: int
    worker_restarts: int
    lost_messages: int
    finished_requests: int
    virtual_s: float


class Simulation:
    """One run. `run` returns its outcome or raises `LawBroken`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.time = VirtualTime()
        self.dice = random.Random(scenario.seed + 1)
        self.lost_messages = 0
        self._trace: deque[str] = deque(maxlen=40)
        self.client = SimulatedClient(self)
        self.engines = [SimulatedEngine(self, i, options) for i, options in enumerate(scenario.engines)]
        for spec in scenario.faults:
            self.engines[spec.engine_id].arm(spec)
        for engine in self.engines:
            engine.start()
        self._tick()

    def run(self) -> Outcome:
        calm_since = None
        while calm_since is None or self.time.now - calm_since < 2.0:
            self._advance()
            calm_since = (calm_since or self.time.now) if self._is_over() else None
            self.law(self.time.now < 60 + 4 * self.scenario.recovery_bound_s, "a run ends")
        self._check_streams()
        kinds = Counter(event.kind for event in self.client.events)
        return Outcome(
            seed=self.scenario.seed,
            ended=self.client.ended,
            recoveries=kinds[EventKind.ENGINE_RECOVERED],
            failed_recoveries=kinds[EventKind.RECOVERY_FAILED],
            worker_restarts=sum(e.worker_restarts for e in self.client.instance.view().engines),
            lost_messages=self.lost_messages,
            finished_requests=sum(e.finished_requests() for e in self.engines),
            virtual_s=self.time.now,
        )

    def _advance(self) -> None:
        try:
            self.time.advance()
        except LawBroken:
            raise
        except Exception as error:
            self.note(repr(error))
            self.law(False, "nothing raises but what is meant to")

    def law(self, holds: bool, law: str) -> None:
        if not holds:
            trace = "\n  ".join(self._trace)
            raise LawBroken(f"{law}: broken by seed {self.scenario.seed} at {self.time.now:.3f} s\n  {trace}")

    def note(self, what: object) -> None:
        self._trace.append(f"{self.time.now:8.3f} {what}")

    def carry(self, message: m.FromEngine | m.ToEngine, deliver: Callable[[bytes], None]) -> None:
        """One message over the link between client and engine core."""
        weather, dice, data = self.scenario.weather, self.dice, m.encode(message)
        copies = 1 + (dice.random() < weather.duplication)
        if dice.random() < weather.loss or type(message) in weather.loses:
            self.lost_messages += 1
            self.note(f"lost: {type(message).__name__}")
            copies -= 1
        for _ in range(copies):
            self.time.after(0.0001 + dice.random() * weather.delay_s, lambda: deliver(data))

    def _tick(self) -> None:
        self.client.tick()
        self.time.after(TICK_S, self._tick)

    def _is_over(self) -> bool:
        if self.client.ended is not None:
            return True
        calm = all(e.state in CALM for e in self.client.instance.view().engines)
        return calm and all(e.is_done() for e in self.engines)

    def _check_streams(self) -> None:
        for engine in self.engines:
            complete = engine.finished_requests() == len(engine.expected)
            self.law(
                complete or self.client.ended is not None, "an accepted request finishes, or the instance says why not"
            )


def simulate(seed: int) -> Outcome:
    """Run the scenario of a seed. Raises `LawBroken`."""
    return Simulation(draw_scenario(seed)).run()
