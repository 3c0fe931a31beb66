"""The agent of a further node: the local end of the wire, and the owner of the node's workers.

One thread owns the sockets and all processes; a second one per worker tells of its end. The agent decides nothing but
when to end itself: an engine core whose port refuses connections is gone, one that is only silent may come back.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from vllm.v1.executor.multiproc_executor import WorkerProcHandle

from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core.membership import HEARTBEAT_S, LOOK_S, Membership, NodeState
from holdfast.core.errors import BadConfiguration, WorldError
from holdfast.core.faults.redaction import account_of
from holdfast.core.protocol import node_messages as nm
from holdfast.core.protocol.decoding import Undecodable
from holdfast.hosts.vllm.engine.worker_pool.exit_watch import WorkerExitWatch
from holdfast.hosts.vllm.engine.worker_pool.spawning import (
    KILL_TIMEOUT_S,
    ReplacementProcess,
    WorkerSeed,
    start_replacement,
)
from holdfast.hosts.vllm.process.lifecycle import describe_exit
from holdfast.hosts.vllm.process.nodes import open_station, versions
from holdfast.hosts.vllm.protocol import QueueHandle, of_handle, to_handle
from holdfast.sentinel.nodes import agent_identity
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import SentinelThread
from holdfast.wire import Delivery

logger = logging.getLogger("holdfast")

HELLO_EVERY_S = 1.0
PROBE_EVERY_S, PROBE_TIMEOUT_S = 1.0, 0.2
BUSY_LOOK_S = 0.02  # while a process starts
EXIT_ENDED, EXIT_HEAD_LOST = 0, 71
_HEAD = 0
_handles = msgspec.msgpack.Decoder(QueueHandle)


class NodeAgent:
    """The agent of node `node` with the ranks `ranks`; the engine core is reached at `address`."""

    def __init__(
        self,
        config: HoldfastConfig,
        node: int,
        ranks: Iterable[int],
        address: str,
        seed: WorkerSeed,
        is_driver: Callable[[int], bool],
    ) -> None:
        self._config = config
        self._node, self._ranks, self._address = node, tuple(ranks), address
        self._seed, self._is_driver = seed, is_driver
        self._agent = uuid.uuid4().hex
        station = open_station(config)
        self._spoke = station.connect(address, agent_identity(node))
        self._thread = SentinelThread(f"NodeAgent-{node}", station, self._deliver, self._tick, self._tick_s)
        self.workers: dict[int, WorkerProcHandle] = {}
        self._watches: dict[int, WorkerExitWatch] = {}
        self._starting: dict[str, ReplacementProcess] = {}
        self._exited_ranks: set[int] = set()  # whose end was told, with how: a heartbeat may leave them out
        self._head = Membership(range(_HEAD, _HEAD + 1))
        self._head_lost_at = 0.0
        self._instance = ""
        self._beat_at = self._hello_at = self._probed_at = 0.0
        self._answer: nm.AgentWelcome | nm.AgentRefused | None = None
        self._answered, self._ended = threading.Event(), threading.Event()
        self.exit_code = EXIT_ENDED
        self._refused = RefusedMessages(f"NodeAgent-{node}")

    # ---- the main thread

    def join(self) -> bool:
        """Wait for the engine core; return whether the ranks begin with the others, by the host's own start.

        Raises:
            BadConfiguration: the engine core refuses this node.
            WorldError: no engine core answers in time.
        """
        self._thread.start()
        logger.info("node %d waits for the engine core at %s", self._node, self._address)
        if not self._answered.wait(self._config.worker_start_timeout_s):
            raise WorldError(
                f"no engine core answered at {self._address}",
                hint="is the first node up, does it have the same secret, and is its --node-port open?",
            )
        if isinstance(self._answer, nm.AgentRefused):
            raise BadConfiguration(f"the first node refuses this one: {self._answer.reason}")
        assert self._answer is not None
        return self._answer.starts

    def take_charge(self, workers: Iterable[WorkerProcHandle]) -> None:
        """Watch the workers that the host has started."""
        for worker in workers:
            self.workers[worker.rank] = worker
            self._watch(worker.rank, worker.proc)

    def await_end(self) -> None:
        """Wait until the engine core has ended, or is lost for good."""
        self._ended.wait()

    def close(self) -> None:
        """End the thread; the workers are left to the caller. Idempotent."""
        for watch in self._watches.values():
            watch.stop()
        self._thread.close()
        for replacement in self._starting.values():
            replacement.kill()

    # ---- the agent's thread

    def _tick_s(self) -> float:
        return BUSY_LOOK_S if self._starting else LOOK_S

    def _deliver(self, delivery: Delivery) -> None:
        try:
            message = nm.decode_to_agent(delivery.data)
        except Undecodable as error:
            self._refused.note(error)
            return
        match message:
            case nm.AgentWelcome():
                self._instance = self._instance or message.instance
                self._heard_head(message.instance)
                self._answer = self._answer or message
                self._answered.set()
            case nm.AgentRefused():
                self._answer = message
                self._answered.set()
            case nm.HeadAlive():
                self._heard_head(message.instance)
            case nm.StartRank():
                self._start_rank(message)
            case nm.EndRank():
                self._end_rank(message)
            case nm.InstanceEnded():
                self._end(EXIT_ENDED, "the instance has ended")

    def _heard_head(self, instance: str) -> None:
        if self._instance and instance != self._instance:
            self._end(EXIT_HEAD_LOST, "another instance has begun on the first node")
        elif self._instance and self._head.heard(_HEAD, instance, time.monotonic()):
            logger.info("node %d has the engine core", self._node)

    def _tick(self) -> None:
        now = time.monotonic()
        if not self._answered.is_set():
            if now - self._hello_at >= HELLO_EVERY_S:
                self._hello_at = now
                self._say(nm.AgentHello(node=self._node, agent=self._agent, versions=versions(), ranks=self._ranks))
            return
        if now - self._beat_at >= HEARTBEAT_S:
            self._beat_at = now
            living = {rank: worker.proc.pid for rank, worker in self.workers.items() if rank not in self._exited_ranks}
            self._say(nm.AgentAlive(node=self._node, agent=self._agent, workers=living))
        for order, replacement in list(self._starting.items()):
            self._look_at_start(order, replacement)
        self._look_at_head(now)

    def _look_at_head(self, now: float) -> None:
        if self._head.look(now).get(_HEAD) is NodeState.LOST:
            self._head_lost_at = now
            logger.error("node %d does not hear the engine core any more", self._node)
        if self._head.state(_HEAD) is not NodeState.LOST or now - self._probed_at < PROBE_EVERY_S:
            return
        self._probed_at = now
        if now - self._head_lost_at >= self._config.node_return_timeout_s:
            self._end(EXIT_HEAD_LOST, "the engine core did not come back in time")
        elif self._is_refused():
            self._end(EXIT_HEAD_LOST, "the engine core is gone: its port refuses connections")

    def _is_refused(self) -> bool:
        host, _, port = self._address.removeprefix("tcp://").rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_TIMEOUT_S).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return False

    def _end(self, exit_code: int, why: str) -> None:
        if not self._ended.is_set():
            logger.warning("node %d ends: %s", self._node, why)
            self.exit_code = exit_code
            self._ended.set()

    # ---- processes: the agent's thread

    def _start_rank(self, command: nm.StartRank) -> None:
        rank = command.rank
        if rank not in self._ranks:
            self._not_started(command.order, rank, f"node {self._node} has no rank {rank}")
            return
        self._end_process(rank)
        try:
            queue = to_handle(_handles.decode(command.queue))
            started = start_replacement(self._seed, rank, is_driver=self._is_driver(rank), queue=queue)
        except Exception as error:  # no process, no memory, no thread left
            self._not_started(command.order, rank, account_of(error).message)
            return
        logger.info("node %d starts rank %d", self._node, rank)
        self._starting[command.order] = started

    def _look_at_start(self, order: str, started: ReplacementProcess) -> None:
        found = multiprocessing.connection.wait([started.ready, started.process.sentinel], 0)
        if not found:
            return
        del self._starting[order]
        assert started.rank is not None
        try:
            ready = started.ready.recv() if started.ready in found else None
        except (EOFError, OSError):
            ready = None
        if ready is None or ready.get("status") != "READY":
            started.kill()
            how = describe_exit(started.process.exitcode)
            self._not_started(order, started.rank, f"the process ended: {how}; see the log of node {self._node}")
            return
        started.ready.close()
        self.workers[started.rank] = WorkerProcHandle(started.process, started.rank, None, [], started.death_writer)
        self._watch(started.rank, started.process)
        self._say(
            nm.RankStarted(
                node=self._node,
                agent=self._agent,
                order=order,
                rank=started.rank,
                pid=started.process.pid,
                queue=msgspec.msgpack.encode(of_handle(ready["handle"])),
            )
        )

    def _not_started(self, order: str, rank: int, why: str) -> None:
        self._say(nm.RankNotStarted(node=self._node, agent=self._agent, order=order, rank=rank, why=why))

    def _end_process(self, rank: int) -> None:
        """End the present process of a rank, and one that starts for it."""
        for order, starting in list(self._starting.items()):
            if starting.rank == rank:
                del self._starting[order]
                starting.kill()
        worker = self.workers.pop(rank, None)
        if worker is not None:
            self._watches.pop(rank).stop()
            worker.proc.kill()
            if worker.death_writer is not None:
                worker.death_writer.close()
            worker.proc.join(KILL_TIMEOUT_S)

    def _end_rank(self, command: nm.EndRank) -> None:
        worker = self.workers.get(command.rank)
        if worker is not None and worker.proc.pid == command.pid:
            worker.proc.kill()  # the watch tells of the end

    def _watch(self, rank: int, process: Any) -> None:
        self._exited_ranks.discard(rank)
        self._watches[rank] = WorkerExitWatch({rank: process}, self._exited)
        self._watches[rank].start()

    def _exited(self, rank: int, pid: int, how: str, exit_code: int | None) -> None:
        report = nm.RankExited(node=self._node, agent=self._agent, rank=rank, pid=pid, how=how, exit_code=exit_code)
        self._thread.post(lambda: self._tell_exit(report))

    def _tell_exit(self, report: nm.RankExited) -> None:
        worker = self.workers.get(report.rank)
        if worker is not None and worker.proc.pid == report.pid:
            self._exited_ranks.add(report.rank)
            self._say(report)

    def _say(self, message: nm.FromAgent) -> None:
        self._spoke.send(nm.encode_node_message(message))  # what is lost is repeated by the next heartbeat
