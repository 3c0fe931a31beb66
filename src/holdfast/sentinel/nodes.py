"""The engine core's view of further nodes: their agents, their workers, and the orders to them.

Deliveries and looks come from the sentinel's thread; orders and waits from any thread.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping

from holdfast.core.engine_core.membership import HEARTBEAT_S, LOST_AFTER_S, Membership, NodeState
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol import node_messages as nm
from holdfast.core.protocol.decoding import Undecodable
from holdfast.sentinel.refused import RefusedMessages

logger = logging.getLogger("holdfast")

START_SILENCE_S = 15.0  # while an instance starts, every processor is busy and nothing is served yet
_AGENT = b"agent-"

OnRankLost = Callable[[int, int, str, int | None], None]
Send = Callable[[bytes, bytes], None]


def agent_identity(node: int) -> bytes:
    """Return the name of the agent of a node on the wire."""
    return _AGENT + b"%d" % node


def is_agent(identity: bytes) -> bool:
    """Return whether a peer on the wire is an agent."""
    return identity.startswith(_AGENT)


class NodeWatch:
    """Watch over the agents of further nodes.

    Args:
        ranks: the ranks of each further node, by its number.
        versions: what runs here; an agent with other versions is refused.
        send: sends a message to a peer on the wire. Any thread; does not wait.

    Attributes:
        on_rank_lost: called with rank, process id, how the process was lost, and the exit code. Sentinel's thread.
        on_start_failed: called when a node is lost before the instance serves. Sentinel's thread.
    """

    on_rank_lost: OnRankLost = staticmethod(lambda rank, pid, how, exit_code: None)
    on_start_failed: Callable[[str], None] = staticmethod(lambda why: None)

    def __init__(self, ranks: Mapping[int, tuple[int, ...]], versions: str, send: Send) -> None:
        self._ranks = dict(ranks)
        self._node_of = {rank: node for node, of_node in ranks.items() for rank in of_node}
        self._versions = versions
        self._send_to = send
        self._instance = uuid.uuid4().hex
        self._serves = False
        self._members = Membership(range(min(ranks), max(ranks) + 1))
        self._workers: dict[int, int] = {}  # by rank: process ids of workers that are believed to live
        self._silent: dict[int, int] = {}  # by rank: processes that were lost with their node, and may still be there
        self._started: dict[str, nm.RankStarted | nm.RankNotStarted] = {}
        self._changed = threading.Condition()
        self._beat_at = 0.0
        self._refused = RefusedMessages("NodeWatch")

    def serve(self) -> None:
        """Note that the instance has started: a lost node is repaired from now on."""
        self._serves = True

    # ---- what agents report: sentinel's thread

    def deliver(self, peer: bytes, data: bytes) -> None:
        """Take a message of an agent."""
        try:
            report = nm.decode_from_agent(data)
        except Undecodable as error:
            self._refused.note(error)
            return
        if report.node not in self._ranks or peer != agent_identity(report.node):
            self._refused.note(f"{peer!r} is not the agent of node {report.node}")
            return
        with self._changed:
            self._take(report)
            self._changed.notify_all()

    def _take(self, report: nm.FromAgent) -> None:
        if isinstance(report, nm.AgentHello):
            self._greet(report)
            return
        node = report.node
        if self._members.agent(node) != report.agent:
            return  # an agent that was replaced, or was never let in
        if self._members.heard(node, report.agent, time.monotonic()):
            logger.warning("node %d is back", node)
        match report:
            case nm.AgentAlive():
                self._compare(node, report.workers)
            case nm.RankExited():
                self._exited(report.rank, report.pid, report.how, report.exit_code)
            case nm.RankStarted() | nm.RankNotStarted():
                self._started[report.order] = report
                if isinstance(report, nm.RankStarted):
                    self._workers[report.rank] = report.pid

    def _greet(self, hello: nm.AgentHello) -> None:
        node = hello.node
        if why := self._unfit(hello):
            logger.error("the agent of node %d is refused: %s", node, why)
            self._send(node, nm.AgentRefused(reason=why))
            return
        known = self._members.agent(node)
        if known not in ("", hello.agent):
            self._forget_workers(node, f"its node {node} began anew")
        if known not in ("", hello.agent) and not self._serves:
            self.on_start_failed(f"node {node} began anew while the instance started")
        self._members.heard(node, hello.agent, time.monotonic())
        if known != hello.agent:
            logger.info("node %d has joined", node)
        self._send(node, nm.AgentWelcome(instance=self._instance, starts=not self._serves))

    def _unfit(self, hello: nm.AgentHello) -> str:
        if hello.versions != self._versions:
            return f"the node runs {hello.versions}, the first node {self._versions}"
        if hello.ranks != self._ranks[hello.node]:
            return f"the node has ranks {list(hello.ranks)}, expected {list(self._ranks[hello.node])}"
        return ""

    def _compare(self, node: int, living: Mapping[int, int]) -> None:
        """Compare the living workers of a node with those that are believed to live."""
        for rank in self._ranks[node]:
            known, found = self._workers.get(rank), living.get(rank)
            if known is not None and found != known:
                self._exited(rank, known, "its process is gone", None)
            if found is not None and known is None and self._silent.get(rank) is None:
                self._workers[rank] = found
            if self._silent.get(rank) is not None and found != self._silent[rank]:
                del self._silent[rank]

    def _exited(self, rank: int, pid: int, how: str, exit_code: int | None) -> None:
        self._silent.pop(rank, None)
        if self._workers.get(rank) == pid:
            del self._workers[rank]
            logger.error("rank %d (pid %d of node %d) is gone: %s", rank, pid, self._node_of[rank], how)
            self.on_rank_lost(rank, pid, how, exit_code)

    def _forget_workers(self, node: int, how: str) -> None:
        for rank in self._ranks[node]:
            self._silent.pop(rank, None)
            if (pid := self._workers.pop(rank, None)) is not None:
                self.on_rank_lost(rank, pid, how, None)

    # ---- silence: sentinel's thread

    def look(self, now: float) -> None:
        """Send heartbeats, and judge the silence of agents."""
        if now - self._beat_at >= HEARTBEAT_S:
            self._beat_at = now
            for node in self._ranks:
                self._send(node, nm.HeadAlive(instance=self._instance))
        with self._changed:
            for node, state in self._members.look(now).items():
                self._state_changed(node, state)
            self._changed.notify_all()

    def _state_changed(self, node: int, state: NodeState) -> None:
        if state is NodeState.SUSPECTED:
            logger.warning("node %d is silent; its ranks are lost after %g s", node, LOST_AFTER_S)
        elif state is NodeState.LOST:
            self._lost(node)

    def _lost(self, node: int) -> None:
        if not self._serves:
            return
        logger.error("node %d is lost: its agent was silent for %g s", node, LOST_AFTER_S)
        for rank in self._ranks[node]:
            if (pid := self._workers.pop(rank, None)) is not None:
                self._silent[rank] = pid
                self.on_rank_lost(rank, pid, f"node {node} was silent for {LOST_AFTER_S:g} s", None)

    # ---- orders: any thread

    def node_of(self, rank: int) -> int:
        """Return the node of a rank of a further node."""
        return self._node_of[rank]

    def pid(self, rank: int) -> int | None:
        """Return the process of a rank that is believed to live; None without one."""
        return self._workers.get(rank)

    def states(self) -> dict[int, NodeState]:
        """Return the state of every further node."""
        with self._changed:
            return self._members.states()

    def await_nodes(self, ranks: set[int], deadline: float) -> dict[int, int]:
        """Wait until the nodes of the ranks are there.

        Returns:
            The processes among the ranks that were lost with their node and are there again, by rank.

        Raises:
            RecoveryFailed: a node is not back before `deadline` (monotonic seconds).
        """
        nodes = {self._node_of[rank] for rank in ranks}
        with self._changed:
            if not self._changed.wait_for(lambda: not self._absent(nodes), deadline - time.monotonic()):
                raise RecoveryFailed(PublicText(f"node(s) {self._absent(nodes)} did not come back in time"))
            return {rank: self._silent[rank] for rank in ranks if rank in self._silent}

    def _absent(self, nodes: set[int]) -> list[int]:
        return sorted(node for node in nodes if self._members.state(node) in (NodeState.LOST, NodeState.EXPECTED))

    def take_back(self, rank: int) -> None:
        """Count a process that was lost with its node among the living again."""
        with self._changed:
            if (pid := self._silent.pop(rank, None)) is not None:
                self._workers[rank] = pid

    def start_rank(self, rank: int, queue: bytes) -> str:
        """Order a new process for a rank; the process before counts no more. Returns the name of the order."""
        order = uuid.uuid4().hex
        with self._changed:
            self._workers.pop(rank, None)
            self._silent.pop(rank, None)
        self._send(self._node_of[rank], nm.StartRank(order=order, rank=rank, queue=queue))
        return order

    def await_started(self, order: str, rank: int, deadline: float) -> nm.RankStarted:
        """Wait until an ordered process has loaded the weights. Raises `RecoveryFailed`."""
        node = self._node_of[rank]
        with self._changed:
            self._changed.wait_for(
                lambda: order in self._started or self._absent({node}), max(0.0, deadline - time.monotonic())
            )
            report = self._started.pop(order, None)
        if isinstance(report, nm.RankStarted):
            return report
        why = report.why if report is not None else f"node {node} is lost, or was too slow"
        raise RecoveryFailed(PublicText(f"the new process of rank {rank} did not start: {why}"))

    def end_rank(self, rank: int) -> None:
        """Have the process of a rank killed; does not wait."""
        pid = self._workers.get(rank) or self._silent.get(rank)
        if pid is not None:
            self._send(self._node_of[rank], nm.EndRank(rank=rank, pid=pid))

    def await_ended(self, rank: int, timeout_s: float) -> bool:
        """Wait until no process of a rank is believed to live; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: rank not in self._workers, timeout_s)

    def end_all(self) -> None:
        """Tell every agent that the instance has ended."""
        for node in self._ranks:
            self._send(node, nm.InstanceEnded())

    def _send(self, node: int, message: nm.ToAgent) -> None:
        self._send_to(agent_identity(node), nm.encode_node_message(message))
