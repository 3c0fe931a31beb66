"""A simulated instance that lives in real time: pretend engine cores under load, with faults, for people to look at.

The shipped instance and the shipped machines run over pretend engines, as in the simulation; here real time moves the
clock, and the owner is a `ControlPlane` for HTTP. A single thread runs everything but calls of `ControlPlane`.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from holdfast.chaos.simulation.conditions import Conditions
from holdfast.chaos.simulation.engine import SimulatedEngine
from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.world import BaseWorld
from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core import effects as fx
from holdfast.core.errors import OperatorError, RecoveryFailed
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.effects import BeginRecovery, Effect, End, LeaveOut, Publish, ReplaceEngine, Send, Settle
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, PoisonRequestEnded, RequestsRefused
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.fake import EngineOptions, OutputToken
from holdfast.sentinel.beside import Beside
from holdfast.sentinel.incident_store import IncidentAnswers, IncidentWriter

MAX_HISTORY = 1000
PACE_S = 0.02
TICK_S = 0.25
STEPS_OF_ALL = 300  # in a second, of all engine cores together
REQUESTS_OF_ALL = 20  # likewise
WORKER_START_S = (0.8, 3.0)
ENGINE_START_S = (4.0, 9.0)


@dataclass(frozen=True)
class LiveOptions:
    """Size of a simulated instance. `fault_every_s`: seconds between two faults, 0 for none but those injected."""

    engines: int = 4
    ranks: int = 4  # of each engine core
    pipeline_stages: int = 1
    fault_every_s: float = 6.0
    policy: str = "auto"
    seed: int = 1


@dataclass(frozen=True)
class _LiveConditions(Conditions):
    def __post_init__(self) -> None:
        incident_dir = tempfile.mkdtemp(prefix="holdfast-simulated-")
        config = HoldfastConfig(enable_fault_injection=True, fault_policy=self.policy, incident_dir=incident_dir)
        object.__setattr__(self, "config", config)


class _Engine(SimulatedEngine):
    """A pretend engine core that takes injected faults of commands."""

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.ArmRank():
                rank = effect.command.spec.rank
                self._tell_rank(rank, effect.command)
                answer = m.WorkerAnswered(rank=rank, pid=self._pids[rank], command_id=effect.command.command_id)
                self._soon(0.05, lambda: self._feed(answer))
            case fx.ArmEngineCore():
                self._host.arm(effect.spec)
            case fx.ConfigureHost() | fx.IntroduceToCoordinator() | fx.DropRequestsOf():
                pass
            case _:
                super()._perform(effect)

    def _recover(self, command: m.RecoverEngine) -> None:
        """Recover; a new process takes its time to start."""
        if not command.replace:
            super()._recover(command)
            return
        self._after(self._world.dice.uniform(*WORKER_START_S), lambda: SimulatedEngine._recover(self, command))

    def lose_worker(self) -> None:
        """End the process of a rank."""
        self._lose_worker()


class LiveInstance(BaseWorld):
    """Implements `ControlPlane` and the world of the simulated engine cores."""

    def __init__(self, options: LiveOptions, *sinks: Callable[[Event, InstanceView], None]) -> None:
        sizes = (EngineOptions(ranks=options.ranks, blocks=40),) * options.engines
        super().__init__(_LiveConditions(options.seed, engines=sizes))
        self._options = options
        self._lock = threading.RLock()
        self._began = time.monotonic()
        self.wall_s = time.time()
        self._instance = Instance(
            [(i,) for i in range(options.engines)],
            self.conditions.config,
            wall_clock=time.time,
            new_command_id=lambda: uuid.uuid4().hex,
            instance_id=uuid.uuid4().hex,
        )
        self._view = self._instance.view()
        self._events: deque[Event] = deque(maxlen=MAX_HISTORY)
        self._commands: dict[str, Future[None]] = {}
        self._incidents = IncidentAnswers(self.config.incident_dir)
        self._sinks = [_beside(take) for take in (IncidentWriter(self.config).take, *sinks)]
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._live, name="LiveInstance", daemon=True)
        self._names = 0
        self.client = self
        self.front_end = _FrontEnd()
        self.engines = [self._new_engine(i, size) for i, size in enumerate(sizes)]

    def start(self) -> None:
        """Begin to live in real time."""
        self.begin()
        self._thread.start()

    def begin(self) -> None:
        """Schedule engine cores, load and faults."""
        for engine in self.engines:
            self.time.after(self.dice.uniform(0.0, 1.0), engine.start)
        self.time.after(0.0, self._tick)
        self.time.after(1.0, self._request)
        if self._options.fault_every_s > 0:
            self.time.after(self._options.fault_every_s, self._hurt)

    def close(self) -> None:
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(5.0)
        for sink in self._sinks:
            sink.close(1.0)
        shutil.rmtree(self.config.incident_dir, ignore_errors=True)

    def _live(self) -> None:
        while not self._ends.wait(PACE_S):
            with self._lock:
                self.time.advance_until(time.monotonic() - self._began)

    def _new_engine(self, engine_id: int, options: EngineOptions, pid: int = 0) -> _Engine:
        engine = _Engine(self, engine_id, options, pid or 10_000 + 100 * engine_id)
        slow = max(0.02, self._options.engines / STEPS_OF_ALL)
        engine.step_s = (0.5 * slow, 1.5 * slow)
        engine._host.pipeline_stages = self._options.pipeline_stages
        return engine

    # ---- ControlPlane, any thread

    @property
    def config(self) -> HoldfastConfig:
        return self._instance.config

    def view(self) -> InstanceView:
        return self._view

    def history(self, after: int = 0) -> tuple[Event, ...]:
        with self._lock:
            return tuple(e for e in self._events if e.sequence > after)

    def submit(self, command: Command) -> Future[None]:
        ended: Future[None] = Future()
        with self._lock:
            self._commands[command.command_id] = ended
            try:
                self._perform(self._instance.submit(command, self.time.now))
            except OperatorError as error:
                self._commands.pop(command.command_id, None)
                ended.set_exception(error)
        return ended

    def incidents(self, asked: str) -> Future[bytes]:
        return self._incidents.ask(asked)

    def poison_request_ended(self, blamed: PoisonRequestEnded) -> None:
        """Do nothing: no API server of the simulation ends a request."""

    def tell_of_guilt(self, report: GuiltReported | RequestsRefused) -> None:
        """Do nothing: no API server of the simulation finds a request guilty."""

    # ---- the owner

    def deliver(self, data: bytes) -> None:
        """Take a message of an engine core."""
        self._perform(self._instance.observe(m.decode_from_engine(data), self.time.now))

    def lost(self, engine_id: int, pid: int | None) -> None:
        """Take the loss of an engine core."""
        self._perform(self._instance.lost(engine_id, "killed by SIGKILL", self.time.now, pid=pid))

    def _tick(self) -> None:
        self._perform(self._instance.tick(self.time.now))
        self.time.after(TICK_S, self._tick)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect.engine_id, effect.message)
                case BeginRecovery():
                    self._begin_recovery(effect)
                case ReplaceEngine():
                    self.replace(effect)
                case LeaveOut():
                    self.engines[effect.engine_id].stop()
                case Publish():
                    self._events.append(effect.event)
                    self._view = effect.view
                    for sink in self._sinks:
                        sink.put((effect.event, effect.view))
                case Settle():
                    self._settle(effect)
                case End():
                    for engine in self.engines:
                        engine.stop()

    def _settle(self, effect: Settle) -> None:
        ended = self._commands.pop(effect.command_id, None)
        if ended is not None:
            ended.set_result(None) if effect.error is None else ended.set_exception(RecoveryFailed(effect.error))

    def _begin_recovery(self, effect: BeginRecovery) -> None:
        meet = Rendezvous("memory", 0, effect.epoch) if effect.rebuild else None
        for engine_id in effect.engine_ids:
            ranks = effect.replace.get(engine_id, ())
            order = m.RecoverEngine(command_id=effect.command_id, epoch=effect.epoch, rendezvous=meet, replace=ranks)
            self._send(engine_id, order)

    def _send(self, engine_id: int, message: m.ToEngine) -> None:
        self.carry(message, self.engines[engine_id].deliver)

    def replace(self, order: ReplaceEngine) -> None:
        """Start a replacement of an engine core."""
        old = self.engines[order.engine_id]
        old.stop()
        self.time.after(order.after_s + self.dice.uniform(*ENGINE_START_S), lambda: self._start_another(old))

    def _start_another(self, old: SimulatedEngine) -> None:
        newcomer = self._new_engine(old.engine_id, old.options, old.pid + 20)
        self.engines[old.engine_id] = newcomer
        newcomer.start()

    # ---- load and faults

    def _request(self) -> None:
        engine = self.dice.choice(self.engines)
        if not engine.is_gone:
            self._names += 1
            prompt = tuple(self.dice.randrange(997) for _ in range(12))
            engine.add(Request(f"request-{self._names}", prompt, 20, engine.ranks), [])
        self.time.after(1.0 / REQUESTS_OF_ALL, self._request)

    def _hurt(self) -> None:
        """Let a fault happen in a random place: mostly an exception, sometimes the loss of a process."""
        engine = self.dice.choice(self.engines)
        kind = self.dice.choices(["raise", "device", "worker", "engine", "hang"], [5, 2, 2, 1, 1])[0]
        if not engine.is_gone:
            self._harm(engine, kind)
        self.time.after(self.dice.uniform(0.5, 1.5) * self._options.fault_every_s, self._hurt)

    def _harm(self, engine: SimulatedEngine, kind: str) -> None:
        rank = self.dice.randrange(engine.ranks)
        if kind == "engine":
            engine.die()
        elif kind == "worker" and isinstance(engine, _Engine):
            engine.lose_worker()
        else:
            text = "an illegal memory access was encountered" if kind == "device" else "injected fault"
            what = FaultKind.HANG if kind == "hang" else FaultKind.RAISE
            spec = InjectionSpec(phase=Phase.FORWARD, kind=what, engine_id=engine.engine_id, rank=rank, message=text)
            engine.arm(spec)


def _beside(take: Callable[[Event, InstanceView], None]) -> Beside[tuple[Event, InstanceView]]:
    return Beside("simulated", lambda pair: take(*pair))


class _FrontEnd:
    """Implements `FrontEnd` for clients that read nothing."""

    def expect(self, request: Request) -> None:
        """Do nothing: nobody compares answers."""

    def accept(self, request: Request, engine_id: int) -> None:
        """Do nothing: requests are given to engine cores directly."""

    def abort(self, name: str) -> None:
        """Do nothing: no client leaves."""

    def end(self, engine: object, request_ids: Iterable[str]) -> None:
        """Do nothing: nobody waits."""

    def deliver(self, engine: object, outputs: Iterable[OutputToken]) -> None:
        """Do nothing: nobody reads."""

    def lost(self, engine_id: int) -> None:
        """Do nothing: requests of a lost engine core are forgotten."""

    def returned(self, engine_id: int) -> None:
        """Do nothing: no request waits."""
