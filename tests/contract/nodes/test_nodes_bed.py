"""The test bed of several nodes: addresses, cuts both ways and one way, a freeze, a power cut, and nothing shared."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from support.nodes import Nodes, needs_nodes, nodes

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 5555))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
ASK = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 5555), timeout=0.3) as connection:
        connection.sendall(b"hello")
        print(connection.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def two() -> Iterator[Nodes]:
    needs_nodes()
    with nodes() as made:
        yield made


def echo(two: Nodes) -> subprocess.Popen[bytes]:
    started = two[1].start([sys.executable, "-c", ECHO, two[1].address], log=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"listening\n"
    return started


def ask(two: Nodes) -> str:
    return two[0].call(sys.executable, "-c", ASK, two[1].address).strip()


def test_a_cut_both_ways_or_one_way_drops_all_packets_silently_and_a_heal_brings_them_back(two: Nodes) -> None:
    echo(two)
    assert ask(two) == "hello"
    for sender in (None, 0, 1):
        two.cut(sender)
        assert ask(two) == "TimeoutError"
        two.heal()
        assert ask(two) == "hello"
    two[1].kill()
    assert ask(two) == "ConnectionRefusedError"


def test_a_frozen_node_says_nothing_until_it_is_thawed(two: Nodes) -> None:
    started = echo(two)
    two[1].freeze()
    assert ask(two) == "TimeoutError"
    two[1].thaw()
    assert ask(two) == "hello"
    two[1].kill()
    started.wait(10)


def test_a_power_cut_ends_every_process_and_says_no_goodbye(two: Nodes) -> None:
    echo(two)
    waits = "import socket, sys; c = socket.create_connection((sys.argv[1], 5555)); print('on', flush=True); c.recv(9)"
    peer = two[0].start([sys.executable, "-c", waits, two[1].address], log=subprocess.PIPE)
    assert peer.stdout is not None
    assert peer.stdout.readline() == b"on\n"
    two.cut_power(1)
    assert two[1].processes() == []
    with pytest.raises(subprocess.TimeoutExpired):
        peer.wait(0.3)
    two[0].kill()
    two.heal()


def test_nodes_share_neither_memory_nor_names_nor_processes(two: Nodes) -> None:
    two[0].call("touch", "/dev/shm/of-node-0")
    assert "of-node-0" not in two[1].call("ls", "/dev/shm")
    assert [node.call("hostname").strip() for node in two.both] == ["node0", "node1"]
    sleeping = two[0].start(["sleep", "3601"])
    deadline = time.monotonic() + 10
    while "sleep 3601" not in two[0].call("ps", "-eo", "args") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert two[0].find("sleep 3601").is_running()
    assert "sleep 3601" not in two[1].call("ps", "-eo", "args")
    two[0].kill()
    sleeping.wait(10)
