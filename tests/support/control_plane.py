"""A control plane in memory: the real `Instance`, with engine cores that a test plays itself."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import OperatorError, RecoveryFailed
from holdfast.core.faults.faults import Fault, FaultClass, unresponsive
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.effects import BeginRecovery, Effect, Publish, Send, Settle
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, RequestsRefused
from holdfast.sentinel.incident_store import IncidentStore, IncidentWriter
from support.instance_bench import signed

FINGERPRINT_KEY = b"0123456789abcdef0123456789abcdef"


def some_fault(engine_id: int = 0, fault_class: FaultClass = FaultClass.TRANSIENT) -> Fault:
    return Fault(
        fault_class=fault_class,
        error_type="InjectedFault",
        message="injected fault",
        engine_id=engine_id,
        rank=0,
        phase="forward",
    )


class MemoryControl:
    """Implements `ControlPlane`; `attach`, `break_down`, `hold`, `recover` and `abort` are the engine cores' part."""

    def __init__(
        self,
        groups: Sequence[Sequence[int]] = ((0,),),
        config: HoldfastConfig | None = None,
        wall_clock: Callable[[], float] = lambda: 1_700_000_000.0,
    ) -> None:
        config = config or HoldfastConfig(fault_policy="external", enable_fault_injection=True)
        self._instance = Instance(
            groups,
            config,
            wall_clock=wall_clock,
            new_command_id=lambda: uuid.uuid4().hex,
            instance_id=uuid.uuid4().hex,
            notify_address="tcp://127.0.0.1:22867",
            fingerprint_key=FINGERPRINT_KEY,
        )
        self._lock = threading.RLock()
        self.store = IncidentStore(config.incident_dir or "/nonexistent")
        self.writer = IncidentWriter(config) if config.incident_dir else None
        self._waiting: dict[str, Future[None]] = {}
        self._view = self._instance.view()
        self.now = 0.0
        self.events: list[Event] = []
        self.sent: list[Send] = []
        self.ordered = threading.Event()
        self.obedient = False  # whether engine cores carry out what they are told, at once

    # ---- ControlPlane

    @property
    def config(self) -> HoldfastConfig:
        return self._instance.config

    def view(self) -> InstanceView:
        return self._view

    def history(self, after: int = 0) -> tuple[Event, ...]:
        return tuple(e for e in self.events if e.sequence > after)

    def submit(self, command: Command) -> Future[None]:
        ended: Future[None] = Future()
        with self._lock:
            try:
                effects = self._instance.submit(command, self.now)
            except OperatorError as error:
                ended.set_exception(error)
                return ended
            self._waiting[command.command_id] = ended
            self._perform(effects)
        self.ordered.set()
        return ended

    def incidents(self, asked: str) -> Future[bytes]:
        answer: Future[bytes] = Future()
        try:
            answer.set_result(self.store.answer(asked))
        except OperatorError as error:
            answer.set_exception(error)
        return answer

    def tell_of_guilt(self, report: GuiltReported | RequestsRefused) -> None:
        with self._lock:
            self._perform(self._instance.take_guilt(report, self.now))

    # ---- the engine cores' part

    def attach(self, unrebuildable: tuple[str, ...] = (), ranks: int = 1) -> MemoryControl:
        for engine in self._view.engines:
            workers = tuple(
                m.WorkerAttached(rank=r, pid=4002 + r, hooks=("worker.step",), unrebuildable=unrebuildable)
                for r in range(ranks)
            )
            self._observe(
                m.EngineAttached(engine_id=engine.engine_id, pid=4001, hooks=("engine.loop",), workers=workers)
            )
        return self

    def return_engine(self, engine_id: int = 0) -> None:
        """The process that takes an engine core's place reports."""
        workers = (m.WorkerAttached(rank=0, pid=5002, hooks=("worker.step",)),)
        self._observe(m.EngineAttached(engine_id=engine_id, pid=5001, hooks=("engine.loop",), workers=workers))

    def judge(self, suspects: int, ended: Sequence[str], engine_id: int = 0) -> None:
        """An engine core tells what it found out about its requests."""
        about = {"engine_id": engine_id, "epoch": self._epoch(engine_id), "reason": "it fails alone"}
        for request_id in ended:
            self._observe(m.RequestEnded(request_id=request_id, incident="now", **about))
        self._observe(m.RequestsSuspected(suspects=suspects, **about))

    def standbys(self, wanted: int = 1, ready: int = 1, memory_bytes: int = 2**30, engine_id: int = 0) -> None:
        changed = m.Standbys(wanted=wanted, ready=ready, memory_bytes=memory_bytes)
        self._observe(m.StandbysChanged(engine_id=engine_id, standbys=changed))

    def defeat(self, engine_id: int = 0) -> MemoryControl:
        """An engine core stops answering, and nobody knows which of its processes hangs."""
        fault = unresponsive(engine_id, "nothing was heard from it")
        self._observe(m.EngineFaulted(engine_id=engine_id, epoch=self._epoch(engine_id), fault=fault))
        return self

    def break_down(self, engine_id: int = 0, fault_class: FaultClass = FaultClass.TRANSIENT) -> MemoryControl:
        fault, epoch = some_fault(engine_id, fault_class), self._epoch(engine_id)
        self._observe(m.EngineFaulted(engine_id=engine_id, epoch=epoch, fault=fault))
        return self.hold(engine_id, fault)

    def hold(self, engine_id: int, fault: Fault | None = None, *, broken: bool = False) -> MemoryControl:
        """An engine core stands still."""
        epoch = self._epoch(engine_id)
        self._observe(
            m.EnginePaused(engine_id=engine_id, epoch=epoch, fault=fault, unfinished_requests=8, broken=broken)
        )
        return self

    def recover(self) -> None:
        """Carry out the last recovery."""
        for order in self._last_recovery():
            self._observe(self._recovered(order))

    def abort(self) -> None:
        """Fail to carry out the last recovery."""
        for engine_id, order in self._last_recovery():
            fault = some_fault(engine_id)
            self._observe(
                m.RecoveryAborted(engine_id=engine_id, command_id=order.command_id, epoch=order.epoch, fault=fault)
            )

    def _last_recovery(self) -> list[tuple[int, m.RecoverEngine]]:
        orders = [(s.engine_id, s.message) for s in self.sent if isinstance(s.message, m.RecoverEngine)]
        return [(engine_id, order) for engine_id, order in orders if order.command_id == orders[-1][1].command_id]

    def _recovered(self, order: tuple[int, m.RecoverEngine]) -> m.EngineRecovered:
        engine_id, retry = order
        report = m.RecoveryReport(
            requests=8, kept_blocks=5, evicted_blocks=2, tokens_to_recompute=40, replaced_ranks=retry.replace
        )
        return m.EngineRecovered(engine_id=engine_id, command_id=retry.command_id, epoch=retry.epoch, report=report)

    def _epoch(self, engine_id: int) -> int:
        engine = self._view.engine(engine_id)
        assert engine is not None
        return engine.epoch

    # ---- effects

    def _observe(self, fact: m.FromEngine) -> None:
        arrived = m.decode_from_engine(m.encode(fact))  # over the wire nothing stays the same object
        with self._lock:
            self._perform(self._instance.observe(signed(arrived, self._instance.view()), self.now))

    def _perform(self, effects: Sequence[Effect]) -> None:
        orders: list[Send] = []
        for effect in effects:
            match effect:
                case Publish(event, view):
                    self.events.append(event.without_stack())
                    if self.writer is not None:
                        self.writer.take(event, view)
                    self._view = view
                case Settle(command_id, error):
                    self._settle(command_id, error)
                case Send():
                    orders.append(effect)
                case BeginRecovery(engine_ids, command_id, epoch, _, replace):
                    orders += [
                        Send(i, m.RecoverEngine(command_id=command_id, epoch=epoch, replace=replace.get(i, ())))
                        for i in engine_ids
                    ]
        self.sent += orders
        if self.obedient:
            for order in orders:
                self._obey(order)

    def _settle(self, command_id: str, error: str | None) -> None:
        ended = self._waiting.pop(command_id, None)
        if ended is not None:
            ended.set_result(None) if error is None else ended.set_exception(RecoveryFailed(error))

    def _obey(self, order: Send) -> None:
        match order.message:
            case m.RecoverEngine():
                self._observe(self._recovered((order.engine_id, order.message)))
            case m.PauseEngine(soft=soft):
                self.hold(order.engine_id, broken=not soft)
            case m.ArmFault(command_id):
                self._observe(m.EngineAnswered(engine_id=order.engine_id, command_id=command_id))
