"""An agent on another node, over a real network with encryption: heard, lost in time behind a cut, and heard again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.core.engine_core.membership import LOST_AFTER_S
from support.nodes import Nodes, needs_nodes, nodes

SECRET = "the secret of both nodes"
HEAD = """
import json, sys, time
from holdfast.sentinel.nodes import NodeWatch, is_agent
from holdfast.sentinel.thread import SentinelThread
from holdfast.wire import ZmqStation
from holdfast.wire.curve import derive_keys

def tell(what, **more):
    print(json.dumps({"what": what, "at": time.time(), **more}), flush=True)

station = ZmqStation(derive_keys(sys.argv[2].encode()))
hub = station.bind(f"tcp://{sys.argv[1]}:22868")
watch = NodeWatch({1: (1,)}, "the same", lambda peer, data: thread.post(lambda: hub.send(peer, data)))
watch.on_rank_lost = lambda rank, pid, how, code: tell("lost", rank=rank, pid=pid, how=how)
watch.serve()
thread = SentinelThread("head", station, lambda d: watch.deliver(d.peer, d.data), lambda: watch.look(time.monotonic()),
                        lambda: 0.05)
thread.start()
tell("listens")
while True:
    state = dict(watch.states())[1]
    there = state == "alive" and (watch.pid(1) or watch.await_nodes({1}, time.monotonic()))
    tell("there" if there else "away", state=state)
    time.sleep(0.05)
"""
AGENT = """
import sys, time
from holdfast.core.protocol import node_messages as nm
from holdfast.sentinel.nodes import agent_identity
from holdfast.wire import ZmqStation
from holdfast.wire.curve import derive_keys

station = ZmqStation(derive_keys(sys.argv[2].encode()))
spoke = station.connect(f"tcp://{sys.argv[1]}:22868", agent_identity(1))
hello = nm.AgentHello(node=1, agent="a", versions="the same", ranks=(1,))
spoke.send(nm.encode_node_message(hello))
while True:
    spoke.send(nm.encode_node_message(nm.AgentAlive(node=1, agent="a", workers={1: 77})))
    station.receive(0.25)
    time.sleep(0.2)
"""


class Head:
    """The head's process, and what it tells, one line at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def await_word(self, what: str, within_s: float = 20.0) -> dict[str, Any]:
        deadline = time.time() + within_s
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            told: dict[str, Any] = json.loads(line)
            if told["what"] == what:
                return told
            assert told["at"] < deadline, told
        raise AssertionError("the head has ended")


@pytest.fixture
def two() -> Iterator[Nodes]:
    needs_nodes()
    with nodes() as made:
        yield made


def test_a_cut_is_noticed_within_its_bound_and_the_same_process_is_there_after_the_heal(two: Nodes) -> None:
    started = two[0].start([sys.executable, "-c", HEAD, two[0].address, SECRET], log=subprocess.PIPE)
    head = Head(started)
    head.await_word("listens")
    two[1].start([sys.executable, "-c", AGENT, two[0].address, SECRET])
    head.await_word("there")
    two.cut()
    cut_at = time.time()
    lost = head.await_word("lost")
    assert (lost["rank"], lost["pid"]) == (1, 77)
    assert lost["at"] - cut_at < LOST_AFTER_S + 1.5
    two.heal()
    healed_at = time.time()
    assert head.await_word("there")["at"] - healed_at < 3.0


def test_an_agent_with_another_secret_is_never_heard(two: Nodes) -> None:
    head = Head(two[0].start([sys.executable, "-c", HEAD, two[0].address, SECRET], log=subprocess.PIPE))
    head.await_word("listens")
    two[1].start([sys.executable, "-c", AGENT, two[0].address, "the secret of somebody else"])
    deadline = time.time() + 1.5
    while (told := head.await_word("away"))["at"] < deadline:
        assert told["state"] == "expected"
