"""The WorkerSentinel: reports its rank's faults out of band and acts while the main thread is stuck."""

from __future__ import annotations

import logging
import os

from holdfast.core import messages as m
from holdfast.core.faults import Fault
from holdfast.core.ports import WorkerHost
from holdfast.sentinel.addresses import worker_identity
from holdfast.sentinel.thread import SentinelThread
from holdfast.wire import Delivery, Station

logger = logging.getLogger("holdfast")


class WorkerSentinel:
    """One per worker process; `report` may be called from the worker's main thread at any time."""

    def __init__(self, host: WorkerHost, rank: int, station: Station, engine_address: str) -> None:
        self._host = host
        self._rank = rank
        self._spoke = station.connect(engine_address, worker_identity(rank))
        self._thread = SentinelThread(f"WorkerSentinel-{rank}", station, self._deliver)

    def start(self, hooks: tuple[str, ...], unrebuildable: tuple[str, ...] = ()) -> None:
        self._send(m.WorkerAttached(rank=self._rank, pid=os.getpid(), hooks=hooks, unrebuildable=unrebuildable))
        self._thread.start()

    def report(self, fault: Fault, epoch: int) -> None:
        """Tell the engine core what happened here. Does not wait."""
        faulted = m.RankFaulted(rank=self._rank, epoch=epoch, fault=fault)
        self._thread.post(lambda: self._send(faulted))

    def close(self) -> None:
        self._thread.close()

    def _deliver(self, delivery: Delivery) -> None:
        try:
            order = m.decode_to_worker(delivery.data)
        except m.Undecodable as error:
            logger.warning("WorkerSentinel-%d: dropped a message: %s", self._rank, error)
            return
        match order:
            case m.ArmWorkerFault():
                self._host.arm(order.spec)
                self._send(m.WorkerAnswered(rank=self._rank, command_id=order.command_id))
            case m.BreakCollectives():
                connections = self._host.break_collectives(order.epoch)
                if connections is not None:
                    self._send(m.CollectivesBroken(rank=self._rank, epoch=order.epoch, connections=connections))

    def _send(self, message: m.FromWorker) -> None:
        if not self._spoke.send(m.encode(message)):
            logger.error("WorkerSentinel-%d: engine core does not take %s", self._rank, type(message).__name__)
