"""The EngineCoreSentinel: one fault from `hold` to `resume`, down this page.

Its thread owns the sockets to the client and to the workers; the busy loop's thread calls `run` and
stands in `_stand_held` while something is repaired. The two share only queues and one condition.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec

from holdfast.core import messages as m
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.core.faults import Fault, FaultClass, classify_error, describe_error
from holdfast.core.injection import InjectionSpec
from holdfast.core.ports import EngineHost
from holdfast.sentinel.addresses import engine_identity, worker_identity
from holdfast.sentinel.thread import SentinelThread
from holdfast.wire import Delivery, Hub, Spoke, Station

logger = logging.getLogger("holdfast")

# How long a fault that surfaced as a worker's reply waits for that worker's own, fuller account.
REPORT_WAIT_S = 0.5
REANNOUNCE_S = 2.0
_POLL_S = 0.2


class EngineDefeated(Exception):
    """The engine core ends: nothing repaired it. Its cause is the original error."""


class EngineCoreSentinel:
    """One per engine core. Built before the workers start, so that they find its address; started after."""

    def __init__(
        self, engine_id: int, config: HoldfastConfig, station: Station, client_address: str, own_address: str
    ) -> None:
        self._engine_id = engine_id
        self._config = config
        self._workers: Hub = station.bind(own_address)
        self._client: Spoke = station.connect(client_address, engine_identity(engine_id))
        self._thread = SentinelThread(f"EngineCoreSentinel-{engine_id}", station, self._deliver)
        self._orders: SimpleQueue[m.RetryEngine | m.EndEngine] = SimpleQueue()
        self._changed = threading.Condition()
        self._attached: dict[int, m.WorkerAttached] = {}
        self._rank_fault: Fault | None = None
        self._epoch = 0
        self._host: EngineHost | None = None

    def start(self) -> None:
        """Begin to answer. Not before the workers were started: a process that forks must be of one thread."""
        self._thread.start()

    # ---- attaching

    def await_workers(self, ranks: int, timeout_s: float) -> tuple[m.WorkerAttached, ...]:
        """All ranks' reports of what they attached to. Raises `HookNotAttached` for a silent rank."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._attached) >= ranks, timeout_s)
            missing = [rank for rank in range(ranks) if rank not in self._attached]
        if missing:
            raise HookNotAttached(
                f"worker rank(s) {missing} of engine {self._engine_id} did not report their hooks",
                hint="the plugin did not load there; see the worker's log",
            )
        return tuple(self._attached[rank] for rank in range(ranks))

    def announce(self, host: EngineHost, hooks: tuple[str, ...], workers: tuple[m.WorkerAttached, ...]) -> None:
        """Report to the client that this engine core is protected from now on."""
        self._host = host
        self._post(m.EngineAttached(engine_id=self._engine_id, pid=os.getpid(), hooks=hooks, workers=workers))

    def close(self) -> None:
        self._thread.close()

    # ---- the busy loop's thread

    def run(self, busy_loop: Callable[[], None], is_running: Callable[[], bool]) -> None:
        """Run the busy loop through its faults. Returns or raises only when the engine core ends."""
        while (error := _outcome(busy_loop)) is not None:
            self._repair(error, is_running)

    def _repair(self, error: Exception, is_running: Callable[[], bool]) -> None:
        held_at = time.monotonic()
        held = self._held(error)
        while True:
            order = self._stand_held(held, is_running)
            if isinstance(order, m.EndEngine):
                raise EngineDefeated(order.reason) from error
            if self._carry_out(order, error, held_at):
                return

    def _held(self, error: Exception) -> m.EngineHeld:
        assert self._host is not None
        return m.EngineHeld(
            engine_id=self._engine_id,
            epoch=self._epoch,
            fault=self._root_cause(error),
            unfinished_requests=self._host.unfinished_requests(),
        )

    def _stand_held(self, held: m.EngineHeld, is_running: Callable[[], bool]) -> m.RetryEngine | m.EndEngine:
        """Wait for the next order, bounded: a client that is gone sends none."""
        bound_s = self._config.engine_recovery_timeout_s + self._config.containment_timeout_s
        deadline = time.monotonic() + bound_s
        while time.monotonic() < deadline:
            # Said again every so often: what was heard the first time changes nothing the second time.
            self._post(msgspec.structs.replace(held, epoch=self._epoch))
            if (order := self._next_order(is_running)) is not None:
                return order
        return m.EndEngine(command_id="", reason=f"no order came within {bound_s:g} s")

    def _next_order(self, is_running: Callable[[], bool]) -> m.RetryEngine | m.EndEngine | None:
        """An order that is still news, or none after a while. Raises `SystemExit` in an orderly shutdown."""
        until = time.monotonic() + REANNOUNCE_S
        while time.monotonic() < until:
            try:
                order = self._orders.get(timeout=_POLL_S)
            except Empty:
                if not is_running():
                    raise SystemExit from None
                continue
            if isinstance(order, m.EndEngine) or order.epoch > self._epoch:
                return order
        return None

    def _carry_out(self, order: m.RetryEngine, error: Exception, held_at: float) -> bool:
        """Follow one retry; true when the busy loop may go on."""
        assert self._host is not None
        with self._changed:
            self._epoch = order.epoch
            self._rank_fault = None
        try:
            report = self._host.recover(error, order.epoch)
        except Exception as again:
            logger.exception("engine %d: recovery failed", self._engine_id)
            self._post(self._aborted(order, again))
            return False
        self._post(
            m.EngineRecovered(
                engine_id=self._engine_id,
                command_id=order.command_id,
                epoch=order.epoch,
                report=_with_held(report, time.monotonic() - held_at),
            )
        )
        return True

    def _aborted(self, order: m.RetryEngine, error: Exception) -> m.RecoveryAborted:
        return m.RecoveryAborted(
            engine_id=self._engine_id,
            command_id=order.command_id,
            epoch=order.epoch,
            fault=self._own_fault(error),
        )

    def _root_cause(self, error: Exception) -> Fault:
        """The rank's own account where there is one: replies carry only a text of it."""
        assert self._host is not None
        if self._host.is_workers_reply(error):
            with self._changed:
                self._changed.wait_for(lambda: self._rank_fault is not None, REPORT_WAIT_S)
        with self._changed:
            return self._rank_fault or self._own_fault(error)

    def _own_fault(self, error: Exception) -> Fault:
        error_type, message = describe_error(error)
        fault_class = classify_error(error_type, message)
        if self._host is not None and self._host.lost_a_worker():
            fault_class = FaultClass.WORKER_LOST
        return Fault(
            fault_class=fault_class,
            error_type=error_type,
            message=message,
            engine_id=self._engine_id,
            phase=getattr(error, "phase", None),
        )

    # ---- the sentinel's thread

    def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.endpoint is self._client:
                self._from_client(m.decode_to_engine(delivery.data))
            else:
                self._from_worker(m.decode_from_worker(delivery.data))
        except m.Undecodable as error:
            logger.warning("EngineCoreSentinel-%d: dropped a message: %s", self._engine_id, error)

    def _from_worker(self, report: m.FromWorker) -> None:
        match report:
            case m.WorkerAttached():
                with self._changed:
                    self._attached[report.rank] = report
                    self._changed.notify_all()
            case m.RankFaulted():
                self._rank_faulted(report)
            case m.WorkerAnswered():
                self._answer(report.command_id, report.refused)

    def _rank_faulted(self, report: m.RankFaulted) -> None:
        with self._changed:
            if report.epoch != self._epoch or self._rank_fault is not None:
                return
            self._rank_fault = report.fault
            self._changed.notify_all()
        self._send(m.EngineFaulted(engine_id=self._engine_id, epoch=report.epoch, fault=report.fault))

    def _from_client(self, order: m.ToEngine) -> None:
        match order:
            case m.RetryEngine():
                if order.epoch > self._epoch:
                    self._orders.put(order)
            case m.EndEngine():
                self._orders.put(order)
            case m.ArmFault():
                self._arm(order.command_id, order.spec)

    def _arm(self, command_id: str, spec: InjectionSpec) -> None:
        if self._host is None:
            self._answer(command_id, "the engine core is still starting")
        elif not spec.phase.in_worker:
            self._host.arm(spec)
            self._answer(command_id, None)
        elif spec.rank not in self._attached:
            self._answer(command_id, f"engine {self._engine_id} has no rank {spec.rank}")
        else:
            order = m.ArmWorkerFault(command_id=command_id, spec=spec)
            if not self._workers.send(worker_identity(spec.rank), m.encode(order)):
                self._answer(command_id, f"rank {spec.rank} takes no commands")

    def _answer(self, command_id: str, refused: str | None) -> None:
        self._send(m.EngineAnswered(engine_id=self._engine_id, command_id=command_id, refused=refused))

    def _post(self, message: m.FromEngine) -> None:
        self._thread.post(lambda: self._send(message))

    def _send(self, message: m.FromEngine) -> None:
        if not self._client.send(m.encode(message)):
            logger.error("EngineCoreSentinel-%d: client does not take a message", self._engine_id)


def _outcome(busy_loop: Callable[[], None]) -> Exception | None:
    """The exception a busy loop ended with. `SystemExit` passes through."""
    try:
        busy_loop()
    except Exception as error:
        return error
    return None


def _with_held(report: m.RecoveryReport, held_s: float) -> m.RecoveryReport:
    return msgspec.structs.replace(report, held_s=held_s)
