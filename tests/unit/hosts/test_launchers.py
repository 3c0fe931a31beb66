"""Each rank has the launcher of its node; the executor treats the processes of both alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import msgspec

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol import node_messages as nm
from holdfast.hosts.vllm.engine.worker_pool.launchers import Launchers, LocalLauncher
from holdfast.hosts.vllm.engine.worker_pool.remote_ranks import RemoteProcess, RemoteReplacement
from holdfast.hosts.vllm.protocol import QueueHandle
from holdfast.sentinel.nodes import NodeWatch, agent_identity

HANDLE = QueueHandle([0], None, None, None, "tcp://192.0.2.1:5")


class Bench:
    """Ranks 0 and 1 here, 2 and 3 on node 1 with an agent that says what it is told to say."""

    def __init__(self) -> None:
        self.said: list[nm.ToAgent] = []
        self.watch = NodeWatch({1: (2, 3)}, "", lambda peer, data: self.said.append(nm.decode_to_agent(data)))
        self.watch.serve()
        self.tell(nm.AgentHello(node=1, agent="a", versions="", ranks=(2, 3)))
        self.tell(nm.AgentAlive(node=1, agent="a", workers={2: 20, 3: 30}))
        self.workers: list[Any] = ["worker 0", "worker 1"]
        here = LocalLauncher(lambda: self.workers, lambda rank, queue: f"started {rank}")  # type: ignore[arg-type,return-value]
        self.launchers = Launchers(here, 2, self.watch)

    def tell(self, report: nm.FromAgent) -> None:
        self.watch.deliver(agent_identity(1), nm.encode_node_message(report))


def test_ranks_of_this_node_are_started_and_kept_here() -> None:
    bench = Bench()
    launcher = bench.launchers.of(1)
    assert (launcher.worker(1), launcher.start(1, HANDLE)) == ("worker 1", "started 1")
    launcher.install(1, "new worker")
    assert bench.workers == ["worker 0", "new worker"]
    assert bench.launchers.elsewhere({0, 1, 2, 3}) == {2, 3}


def test_a_rank_of_a_further_node_is_killed_awaited_and_started_by_its_agent() -> None:
    bench = Bench()
    process = bench.launchers.of(3).worker(3).proc
    assert isinstance(process, RemoteProcess)
    assert (process.pid, process.is_alive()) == (30, True)
    process.kill()
    assert bench.said[-1] == nm.EndRank(rank=3, pid=30)
    bench.tell(nm.RankExited(node=1, agent="a", rank=3, pid=30, how="killed", exit_code=-9))
    process.join(5.0)
    assert not process.is_alive()
    bench.launchers.of(3).install(3, SimpleNamespace())
    assert bench.workers == ["worker 0", "worker 1"]


def test_an_order_that_no_agent_carries_out_in_time_and_a_strange_queue_fail_the_recovery() -> None:
    bench = Bench()
    started = bench.launchers.of(3).start(3, HANDLE)
    assert isinstance(started, RemoteReplacement)
    order = bench.said[-1]
    assert isinstance(order, nm.StartRank)
    assert msgspec.msgpack.decode(order.queue, type=QueueHandle) == HANDLE
    with pytest.raises(RecoveryFailed, match="rank 3 did not start"):
        started.await_ready(0.0)
    bench.tell(nm.RankStarted(node=1, agent="a", order=order.order, rank=3, pid=33, queue=b"no handle"))
    with pytest.raises(RecoveryFailed, match="queue of rank 3 is not understood"):
        started.await_ready(0.0)
    started.kill()
    assert bench.said[-1] == nm.EndRank(rank=3, pid=33)
