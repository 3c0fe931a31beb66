"""The EngineCoreSentinel: one fault from `hold` to `resume`, down this page.

Its thread owns the sockets to the client and to the workers; the busy loop's thread calls `run` and
stands in `_next_order` while something is repaired. The two share only queues and the containment.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec, UncontainedFault
from holdfast.core.ports import EngineHost
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.sentinel.addresses import engine_identity, worker_identity
from holdfast.sentinel.command_queue import CommandQueue
from holdfast.sentinel.containment import Containment
from holdfast.sentinel.fault_injector import FaultInjector
from holdfast.sentinel.hung_ranks import HungRanks
from holdfast.sentinel.quarantine import Quarantine
from holdfast.sentinel.rank_registry import RankRegistry
from holdfast.sentinel.root_cause import RootCause
from holdfast.sentinel.stall_watch import PERIOD_S, RankWatch
from holdfast.sentinel.stopping import Stopping
from holdfast.sentinel.thread import IDLE_S, SentinelThread
from holdfast.wire import Delivery, Hub, Spoke, Station

logger = logging.getLogger("holdfast")

_POLL_S = 0.2


class EngineDefeated(Exception):
    """The engine core ends: nothing repaired it. Its cause is the original error."""


class StartedAlone(Exception):
    """Why an engine core stands that takes a place in a lockstep group: nothing is wrong with it."""


class EngineCoreSentinel:
    """One per engine core. Built before the workers start, so that they find its address; started after."""

    def __init__(
        self,
        engine_id: int,
        config: HoldfastConfig,
        station: Station,
        client_address: str,
        own_address: str,
        *,
        joins_epoch: int | None = None,
    ) -> None:
        self._engine_id = engine_id
        self._config = config
        self._workers: Hub = station.bind(own_address)
        self._client: Spoke = station.connect(client_address, engine_identity(engine_id))
        self._thread = SentinelThread(
            f"EngineCoreSentinel-{engine_id}", station, self._deliver, self._tick, self._idle_s
        )
        self._orders = CommandQueue(config.engine_recovery_timeout_s + config.containment_timeout_s)
        self._rank_registry = RankRegistry(engine_id)
        self._containment = Containment(config.acknowledge_timeout_s)
        self._joins = joins_epoch is not None  # it has met none of its peers yet
        self._containment.begin(joins_epoch or 0)
        self._root_cause = RootCause(engine_id, config, self._containment)
        self._stopping = Stopping(engine_id, self._containment, self._rank_registry, self._tell_ranks, self._send)
        self._hung_ranks = HungRanks(engine_id, config, self._stopping, self._containment, self._rank_registry)
        self._watch: RankWatch | None = None
        self._fault_injector = FaultInjector(engine_id, self._tell_worker)
        self._quarantine = (
            Quarantine(engine_id, self._post, lambda: self._containment.epoch) if config.poison_detection else None
        )

    def start(self) -> None:
        """Begin to answer. Not before the workers were started: a process that forks must be of one thread."""
        self._thread.start()

    # ---- attaching

    def await_workers(self, ranks: int, timeout_s: float) -> tuple[m.WorkerAttached, ...]:
        """All ranks' reports of what they attached to. Raises `HookNotAttached` for a silent rank."""
        return self._rank_registry.await_ranks(ranks, timeout_s)

    def await_processes(self, pids: Mapping[int, int], timeout_s: float) -> None:
        """Wait until the new processes of these ranks have reported. Raises `HookNotAttached` for a silent one."""
        self._rank_registry.await_processes(pids, timeout_s)

    def report_standbys(self, wanted: int, ready: int, memory_bytes: int) -> None:
        """How many processes stand ready to take a rank's place. Any thread."""
        self._post(m.StandbysChanged(engine_id=self._engine_id, wanted=wanted, ready=ready, memory_bytes=memory_bytes))

    def announce(self, host: EngineHost, hooks: tuple[str, ...], workers: tuple[m.WorkerAttached, ...]) -> None:
        """Report to the client that this engine core is protected from now on."""
        if self._config.stall_detection and self._config.runtime_dir:
            limits = Limits(may_compile=host.compiles_in_steps)
            self._watch = RankWatch(self._config.runtime_dir, self._hung_ranks, limits, with_peers=host.in_lockstep)
            self._hung_ranks.incidents.devices = host.devices
        self._stopping.host = host
        self._post(
            m.EngineAttached(
                engine_id=self._engine_id,
                pid=os.getpid(),
                hooks=hooks,
                workers=workers,
                unrebuildable=host.unrebuildable(),
            )
        )

    def close(self) -> None:
        self._thread.close()

    # ---- the busy loop's thread

    def run(self, busy_loop: Callable[[], None], is_running: Callable[[], bool]) -> None:
        """Run the busy loop through its faults. Returns or raises only when the engine core ends."""
        if self._joins:
            self._stand_until_let_in(None, StartedAlone("it has met none of its peers yet"), is_running)
        while (error := _outcome(busy_loop)) is not None:
            self._repair(error, is_running)

    def _repair(self, error: Exception, is_running: Callable[[], bool]) -> None:
        held_at = time.monotonic()
        fault = self._root_cause.root_cause(error, self._host_of_busy_loop())
        if fault is not None and self._stopping.leaves_peers_waiting(fault):
            self._stopping.break_collectives(self._containment.epoch)
        self._stand_until_let_in(fault, error, is_running, held_at)

    def _stand_until_let_in(
        self, fault: Fault | None, error: Exception, is_running: Callable[[], bool], held_at: float | None = None
    ) -> None:
        held_at = time.monotonic() if held_at is None else held_at
        self._containment.wait_stopped()
        if self._quarantine is not None:
            self._quarantine.learn(self._containment.fault or fault, self._host_of_busy_loop().requests)
        while True:
            self._containment.wait_stopped()
            order = self._next_order(fault, is_running)
            if isinstance(order, m.EndEngine):
                raise EngineDefeated(order.reason) from error
            if self._carry_out(order, error, held_at):
                return

    def _host_of_busy_loop(self) -> EngineHost:
        assert self._host is not None
        return self._host

    def _held(self, fault: Fault | None) -> m.EnginePaused:
        return m.EnginePaused(
            engine_id=self._engine_id,
            epoch=self._containment.epoch,
            fault=fault,
            unfinished_requests=self._host_of_busy_loop().unfinished_requests(),
            broken=self._containment.broken,
            search_progressed=self._quarantine is not None and self._quarantine.search_progressed,
        )

    def _next_order(self, fault: Fault | None, is_running: Callable[[], bool]) -> m.RecoverEngine | m.EndEngine:
        return self._orders.wait(lambda: self._post(self._held(fault)), self._containment.epoch, is_running)

    def _carry_out(self, order: m.RecoverEngine, error: Exception, held_at: float) -> bool:
        """Follow one retry; true when the busy loop may go on."""
        self._containment.begin(order.epoch)
        if self._watch is not None:
            self._thread.post(self._watch.begin_anew)
        try:
            report = self._host_of_busy_loop().recover(error, order.epoch, order.rendezvous, order.replace)
            if self._quarantine is not None:
                self._quarantine.carry_out(report.replaced_ranks)
        except UncontainedFault:
            raise
        except Exception as again:
            logger.exception("engine %d: recovery failed", self._engine_id)
            if self._stopping.has_peers():
                self._stopping.break_collectives(order.epoch)
            self._post(self._aborted(order, again))
            return False
        self._post(
            m.EngineRecovered(
                engine_id=self._engine_id,
                command_id=order.command_id,
                epoch=order.epoch,
                report=_with_held(report, time.monotonic() - held_at),
                worker_pids=tuple(self._rank_registry.pids().values()),
            )
        )
        return True

    def _aborted(self, order: m.RecoverEngine, error: Exception) -> m.RecoveryAborted:
        return m.RecoveryAborted(
            engine_id=self._engine_id,
            command_id=order.command_id,
            epoch=order.epoch,
            fault=self._root_cause.own_fault(error, self._host_of_busy_loop()),
        )

    # ---- the sentinel's thread

    @property
    def _host(self) -> EngineHost | None:
        """None until everything is there."""
        return self._stopping.host

    def _idle_s(self) -> float:
        if self._watch is not None and self._host is not None:
            return PERIOD_S
        return _POLL_S if self._containment.owes else IDLE_S

    def _tick(self) -> None:
        self._hung_ranks.declare_overdue()
        if self._watch is not None and self._host is not None:
            self._watch.tick(time.monotonic())

    def rank_lost(self, rank: int, how: str, exit_code: int | None = None) -> None:
        """The process of a rank is gone. Any thread."""
        self._thread.post(lambda: self._hung_ranks.note_lost(rank, how, exit_code))

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
                self._rank_registry.note(report)
                self._fault_injector.arm_again(report.rank)
            case m.RankFaulted():
                self._stopping.rank_faulted(report)
            case m.CollectivesBroken():
                self._containment.acknowledged(report.rank, report.epoch)
            case m.WorkerAnswered():
                self._answer(report.command_id, report.refused)
            case m.RankStuck():
                self._hung_ranks.note_stuck_rank(report)

    def _from_client(self, order: m.ToEngine) -> None:
        self._orders.heard()
        match order:
            case m.RecoverEngine():
                if order.epoch > self._containment.epoch:
                    self._orders.put(order)
            case m.PauseEngine():
                self._stopping.pause(order)
            case m.EndEngine():
                self._orders.put(order)
            case m.ArmFault():
                self._arm(order.command_id, order.spec)
            case m.CoordinatorReplaced():
                if self._host is not None:  # one that is still starting has said nothing yet that could be lost
                    self._host.introduce_to_coordinator()
            case m.ClientLost():
                if self._host is not None:
                    self._host.drop_requests_of(order.client_index)

    def _arm(self, command_id: str, spec: InjectionSpec) -> None:
        refused = self._fault_injector.arm(command_id, spec, self._host, self._rank_registry.ranks())
        if refused is not None:
            self._answer(command_id, refused or None)

    def _tell_ranks(self, ranks: set[int], order: bytes) -> None:
        """Any thread."""
        self._thread.post(lambda: self._tell_each(ranks, order))

    def _tell_each(self, ranks: set[int], order: bytes) -> None:
        for rank in sorted(ranks):
            if not self._tell_worker(rank, order):
                logger.error("EngineCoreSentinel-%d: rank %d takes no commands", self._engine_id, rank)

    def _tell_worker(self, rank: int, order: bytes) -> bool:
        return self._workers.send(worker_identity(rank), order)

    def _answer(self, command_id: str, refused: str | None) -> None:
        self._send(m.EngineAnswered(engine_id=self._engine_id, command_id=command_id, refused=refused))

    def _post(self, message: m.FromEngine) -> None:
        self._thread.post(lambda: self._send(message))

    def _send(self, message: m.FromEngine) -> None:
        if not self._client.send(m.encode(message)):
            logger.error("EngineCoreSentinel-%d: client does not take a message", self._engine_id)


def _outcome(busy_loop: Callable[[], None]) -> Exception | None:
    """The exception a busy loop ended with. `SystemExit` passes through, and what nothing is to contain."""
    try:
        busy_loop()
    except UncontainedFault:
        raise
    except Exception as error:
        return error
    return None


def _with_held(report: m.RecoveryReport, held_s: float) -> m.RecoveryReport:
    return msgspec.structs.replace(report, held_s=held_s)
