"""The WorkerSentinel: reports its rank's faults out of band and acts while the main thread is stuck."""

from __future__ import annotations

import logging
import os
import time

import msgspec

from holdfast.core.faults.faults import Fault
from holdfast.core.ports import WorkerHost
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.decoding import Undecodable
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import IDLE_S, SentinelThread, worker_identity
from holdfast.wire import Delivery, Station

logger = logging.getLogger("holdfast")

LEAVES_WITHIN_S = 1.0  # a collective that was broken raises within milliseconds
_LOOK_S = 0.25


class WorkerSentinel:
    """Sentinel of one worker process. The worker's main thread may call `report` at any time.

    Args:
        node: the number of the worker's node; 0 on the engine core's own.
    """

    def __init__(self, host: WorkerHost, rank: int, station: Station, engine_address: str, *, node: int = 0) -> None:
        self._host = host
        self._rank = rank
        self._node = node
        self._spoke = station.connect(engine_address, worker_identity(rank))
        self._thread = SentinelThread(f"WorkerSentinel-{rank}", station, self._deliver, self._tick, self._tick_s)
        self._broken: tuple[int, float] | None = None  # the epoch whose collectives were broken, and when
        self._waits_in: str | None = None
        self._refused = RefusedMessages(f"WorkerSentinel-{rank}")

    def start(self, hooks: tuple[str, ...], unrebuildable: tuple[str, ...] = ()) -> None:
        report = m.WorkerAttached(
            rank=self._rank, pid=os.getpid(), hooks=hooks, unrebuildable=unrebuildable, node=self._node
        )
        self._send(report)
        self._thread.start()

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        """Report a fault of this rank to the engine core. Does not wait."""
        faulted = m.RankFaulted(rank=self._rank, epoch=epoch, fault=fault, finishes=finishes)
        self._thread.post(lambda: self._send(faulted))

    def close(self) -> None:
        self._thread.close()

    def _deliver(self, delivery: Delivery) -> None:
        try:
            command = m.decode_to_worker(delivery.data)
        except Undecodable as error:
            self._refused.note(error)
            return
        match command:
            case m.ArmWorkerFault():
                self._host.arm(command.spec)
                self._send(m.WorkerAnswered(rank=self._rank, command_id=command.command_id))
            case m.BreakCollectives():
                connections = self._host.break_collectives(command.epoch)
                if connections is not None:
                    self._broken, self._waits_in = (command.epoch, time.monotonic()), None
                    self._acknowledge(command.epoch, connections)

    def _acknowledge(self, epoch: int, connections: int) -> None:
        """Acknowledge behind every report: a fault that the main thread reported before the break is the root cause.

        The engine core looks at the fault once all ranks have acknowledged, and would miss a report that comes later.
        """
        broken = m.CollectivesBroken(rank=self._rank, epoch=epoch, connections=connections)
        self._thread.post(lambda: self._send(broken))

    def _tick_s(self) -> float:
        return IDLE_S if self._broken is None else _LOOK_S

    def _tick(self) -> None:
        """Check whether the main thread has left the broken collectives."""
        if self._broken is None or time.monotonic() < self._broken[1] + LEAVES_WITHIN_S:
            return
        waits_in, before = self._host.collective_under_way(self._broken[0]), self._waits_in
        self._waits_in = waits_in
        if waits_in is None or waits_in == before:
            self._broken = None
        if waits_in is not None and waits_in == before:
            self._send(m.RankStuck(rank=self._rank, collective=waits_in))

    def _send(self, message: m.FromWorker) -> None:
        """Sign a message with the process id, and send the message."""
        if not self._spoke.send(m.encode(msgspec.structs.replace(message, pid=os.getpid()))):
            logger.error("WorkerSentinel-%d: engine core does not take %s", self._rank, type(message).__name__)
