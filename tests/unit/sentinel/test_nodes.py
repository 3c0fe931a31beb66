"""The engine core's view of further nodes, over messages made by hand: who is let in, lost, taken back, started."""

from __future__ import annotations

import threading
import time

import pytest

from holdfast.core.engine_core.membership import LOOK_S, LOST_AFTER_S, NodeState
from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol import node_messages as nm
from holdfast.sentinel.nodes import NodeWatch, agent_identity

VERSIONS = "Holdfast 1 on vLLM 2"
SOON_S = 5.0  # a bound that a passing test never reaches


class Bench:
    """A watch over node 1 with the ranks 2 and 3, and everything it said and told."""

    def __init__(self, *, serves: bool = True) -> None:
        self.said: list[nm.ToAgent] = []
        self.lost: list[tuple[int, int, str, int | None]] = []
        self.failed_starts: list[str] = []
        self.watch = NodeWatch({1: (2, 3)}, VERSIONS, self._send)
        self.watch.on_rank_lost = lambda *about: self.lost.append(about)
        self.watch.on_start_failed = self.failed_starts.append
        if serves:
            self.watch.serve()

    def _send(self, peer: bytes, data: bytes) -> None:
        assert peer == agent_identity(1)
        self.said.append(nm.decode_to_agent(data))

    def tell(self, report: nm.FromAgent, peer: bytes = agent_identity(1)) -> None:
        self.watch.deliver(peer, nm.encode_node_message(report))

    def greet(self, agent: str = "a", versions: str = VERSIONS, ranks: tuple[int, ...] = (2, 3)) -> None:
        self.tell(nm.AgentHello(node=1, agent=agent, versions=versions, ranks=ranks))

    def beat(self, workers: dict[int, int], agent: str = "a") -> None:
        self.tell(nm.AgentAlive(node=1, agent=agent, workers=workers))

    def fall_silent(self) -> None:
        now = time.monotonic()
        for turn in range(round(LOST_AFTER_S / LOOK_S) + 2):
            self.watch.look(now + turn * LOOK_S)


def joined(**options: bool) -> Bench:
    bench = Bench(**options)
    bench.greet()
    bench.beat({2: 20, 3: 30})
    return bench


@pytest.mark.parametrize("serves", [False, True])
def test_an_agent_is_told_whether_its_ranks_begin_with_the_others(serves: bool) -> None:
    bench = Bench(serves=serves)
    bench.greet()
    [welcome] = bench.said
    assert isinstance(welcome, nm.AgentWelcome)
    assert welcome.starts is not serves


@pytest.mark.parametrize(
    ("unfit", "why"),
    [({"versions": "Holdfast 9 on vLLM 2"}, "Holdfast 9"), ({"ranks": (2,)}, r"ranks \[2\], expected \[2, 3\]")],
)
def test_an_agent_with_other_versions_or_ranks_is_refused(unfit: dict[str, object], why: str) -> None:
    bench = Bench()
    bench.greet(**unfit)  # type: ignore[arg-type]
    bench.beat({2: 20, 3: 30})
    [refused] = bench.said
    assert isinstance(refused, nm.AgentRefused)
    assert pytest.approx(1) == len(bench.said)
    import re

    assert re.search(why, refused.reason)
    assert bench.watch.states() == {1: NodeState.EXPECTED}


def test_the_exit_of_a_worker_is_told_once_with_how_it_ended() -> None:
    bench = joined()
    bench.tell(nm.RankExited(node=1, agent="a", rank=3, pid=30, how="killed by SIGKILL", exit_code=-9))
    bench.beat({2: 20})
    assert bench.lost == [(3, 30, "killed by SIGKILL", -9)]
    assert (bench.watch.pid(2), bench.watch.pid(3)) == (20, None)


def test_a_worker_that_a_heartbeat_no_longer_names_is_lost() -> None:
    bench = joined()
    bench.beat({2: 20})
    assert bench.lost == [(3, 30, "its process is gone", None)]


def test_the_ranks_of_a_silent_node_are_lost_and_the_same_processes_are_there_again() -> None:
    bench = joined()
    bench.fall_silent()
    assert [(rank, pid) for rank, pid, _, _ in bench.lost] == [(2, 20), (3, 30)]
    assert "silent for 1.5 s" in bench.lost[0][2]
    with pytest.raises(RecoveryFailed, match=r"node\(s\) \[1\] did not come back"):
        bench.watch.await_nodes({2, 3}, time.monotonic())
    bench.beat({2: 20, 3: 31})
    assert bench.watch.await_nodes({2, 3}, time.monotonic()) == {2: 20}
    assert bench.watch.pid(2) is None
    bench.watch.take_back(2)
    assert bench.watch.pid(2) == 20
    assert len(bench.lost) == 2


def test_a_wait_for_a_node_ends_with_its_first_word() -> None:
    bench = joined()
    bench.fall_silent()
    found: list[dict[int, int]] = []
    waiting = threading.Thread(target=lambda: found.append(bench.watch.await_nodes({2}, time.monotonic() + SOON_S)))
    waiting.start()
    bench.beat({2: 20, 3: 30})
    waiting.join(SOON_S)
    assert found == [{2: 20}]


def test_a_node_that_began_anew_has_lost_its_workers() -> None:
    bench = joined()
    bench.greet("b")
    assert [(rank, pid) for rank, pid, _, _ in bench.lost] == [(2, 20), (3, 30)]
    bench.beat({2: 20}, agent="a")  # a late word of the old agent
    assert bench.watch.await_nodes({2}, time.monotonic()) == {}


def test_a_node_that_began_anew_or_fell_silent_during_the_start() -> None:
    bench = joined(serves=False)
    bench.fall_silent()
    assert bench.lost == []
    bench.greet("b")
    assert bench.failed_starts == ["node 1 began anew while the instance started"]


def test_a_process_is_started_on_order_and_its_queue_is_handed_on() -> None:
    bench = joined()
    order = bench.watch.start_rank(3, b"calls")
    assert bench.said[-1] == nm.StartRank(order=order, rank=3, queue=b"calls")
    bench.beat({2: 20})
    assert bench.lost == []
    ready = nm.RankStarted(node=1, agent="a", order=order, rank=3, pid=33, queue=b"replies")
    bench.tell(ready)
    assert bench.watch.await_started(order, 3, time.monotonic()) == ready
    assert bench.watch.pid(3) == 33


def test_a_process_that_does_not_start_and_a_node_that_is_lost_meanwhile_fail_the_order() -> None:
    bench = joined()
    order = bench.watch.start_rank(3, b"calls")
    bench.tell(nm.RankNotStarted(node=1, agent="a", order=order, rank=3, why="no memory"))
    with pytest.raises(RecoveryFailed, match="rank 3 did not start: no memory"):
        bench.watch.await_started(order, 3, time.monotonic() + SOON_S)
    order = bench.watch.start_rank(3, b"calls")
    bench.fall_silent()
    with pytest.raises(RecoveryFailed, match="node 1 is lost"):
        bench.watch.await_started(order, 3, time.monotonic() + SOON_S)


def test_a_process_is_killed_by_its_agent_and_the_end_is_awaited() -> None:
    bench = joined()
    bench.watch.end_rank(3)
    assert bench.said[-1] == nm.EndRank(rank=3, pid=30)
    assert not bench.watch.await_ended(3, 0.0)
    bench.tell(nm.RankExited(node=1, agent="a", rank=3, pid=30, how="killed", exit_code=-9))
    assert bench.watch.await_ended(3, 0.0)


@pytest.mark.parametrize("peer", [b"agent-2", b"worker-1"])
def test_a_report_under_another_name_changes_nothing(peer: bytes) -> None:
    bench = joined()
    bench.tell(nm.AgentAlive(node=1, agent="a", workers={}), peer=peer)
    bench.watch.deliver(agent_identity(1), b"no message")
    assert bench.lost == []


def test_heartbeats_go_to_every_node_and_the_end_is_told() -> None:
    bench = Bench()
    bench.watch.look(100.0)
    bench.watch.look(100.1)
    bench.watch.end_all()
    assert [type(message) for message in bench.said] == [nm.HeadAlive, nm.InstanceEnded]
