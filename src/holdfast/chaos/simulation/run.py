"""One run: the shipped instance and the shipped machines over pretend engines, on virtual time and a link that fails.

Checks the laws while the run lasts. Never sleeps, reads no clock, starts no thread: a seed replays a run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from holdfast.chaos.simulation.client import CALM, SimulatedClient
from holdfast.chaos.simulation.conditions import Conditions, draw_conditions
from holdfast.chaos.simulation.engine import SimulatedEngine
from holdfast.chaos.simulation.front_end import SimulatedFrontEnd
from holdfast.chaos.simulation.world import BaseWorld, LawBroken
from holdfast.core.protocol.effects import ReplaceEngine
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState

TICK_S = 0.25
ATTACH_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class RunSummary:
    """Summary of a run. `ended`: the last line of an instance that gave up."""

    seed: int
    ended: str | None
    recoveries: int
    failed_recoveries: int
    worker_restarts: int
    engine_restarts: int
    moved_requests: int
    lost_messages: int
    finished_requests: int
    virtual_s: float


class Simulation(BaseWorld):
    """A simulated run. `run` returns a summary or raises `LawBroken`."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__(conditions)
        self.client = SimulatedClient(self)
        self.front_end = SimulatedFrontEnd(self)
        self.engines = [SimulatedEngine(self, i, options) for i, options in enumerate(conditions.engines)]
        for engine in self.engines:
            engine.draw_requests()
        for spec in conditions.faults:
            self.engines[spec.engine_id].arm(spec)
        for engine in self.engines:
            engine.start()
        self._tick()

    def run(self) -> RunSummary:
        """Run until the instance has been calm for a while, or has ended."""
        calm_since = None
        while calm_since is None or self.time.now - calm_since < 2.0:
            self._advance()
            calm_since = (calm_since or self.time.now) if self._is_over() else None
            self.law(self.time.now < 60 + 4 * self.conditions.recovery_bound_s, "a run ends")
        self._check_streams()
        kinds = Counter(event.kind for event in self.client.events)
        return RunSummary(
            seed=self.conditions.seed,
            ended=self.client.ended,
            recoveries=kinds[EventKind.ENGINE_RECOVERED],
            failed_recoveries=kinds[EventKind.RECOVERY_FAILED],
            worker_restarts=sum(e.worker_restarts for e in self.client.instance.view().engines),
            engine_restarts=kinds[EventKind.ENGINE_RESTARTED],
            moved_requests=self.front_end.moved,
            lost_messages=self.lost_messages,
            finished_requests=self.front_end.finished,
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

    # ---- what the launcher of the engine cores does

    def replace(self, order: ReplaceEngine) -> None:
        """Start a replacement of an engine core; the replacement may die while starting."""
        self.engines[order.engine_id].stop()
        starts_in_s = order.after_s + self.dice.uniform(0.5, 2.0)
        fails = self.dice.random() < self.conditions.lost
        self.time.after(starts_in_s, lambda: self._start_another(order.engine_id, fails))

    def _start_another(self, engine_id: int, fails: bool) -> None:
        if self.client.ended is not None:
            return
        if fails:
            self.client.lost(engine_id, None)
            return
        old = self.engines[engine_id]
        newcomer = self.engines[engine_id] = SimulatedEngine(self, engine_id, old.options, old.pid + 10)
        newcomer.start()
        self.time.after(ATTACH_TIMEOUT_S, lambda: self._give_up_unless_attached(newcomer))

    def _give_up_unless_attached(self, newcomer: SimulatedEngine) -> None:
        """Stop a replacement that has not attached in time: the first message may be lost."""
        known = self.client.instance.view().engine(newcomer.engine_id)
        waited_for = known is not None and known.state is EngineState.RESTARTING
        if waited_for and not newcomer.is_gone and self.client.ended is None:
            newcomer.stop()
            self.client.lost(newcomer.engine_id, newcomer.pid)

    def _tick(self) -> None:
        self.client.tick()
        self.time.after(TICK_S, self._tick)

    def _is_over(self) -> bool:
        if self.client.ended is not None:
            return True
        if not self.front_end.is_done:
            return False
        engines = self.client.view().engines
        left_out = {e.engine_id for e in engines if e.state is EngineState.LEFT_OUT}
        run = all(e.runs for e in self.engines if e.engine_id not in left_out)
        return run and all(e.state in CALM for e in engines)

    def _check_streams(self) -> None:
        finished = self.front_end.is_done or self.client.ended is not None
        self.law(finished, "an accepted request finishes, or the instance says why not")


def simulate(seed: int) -> RunSummary:
    """Run the conditions of a seed. Raises `LawBroken`."""
    return Simulation(draw_conditions(seed)).run()
