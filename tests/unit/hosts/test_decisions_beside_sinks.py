"""No sink delays a decision: a log that nobody reads, subscribers that flood, evidence on a hung file system."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.api.zmtp import GREETING, frame
from holdfast.sentinel.refused import COUNTED_AS

BENCH = Path(__file__).parents[2] / "support" / "unread_sinks.py"
BOUND_S = 0.05
WITHIN_S = 60.0
SUBSCRIPTION = frame(b"\x01vllm_fault")
READY = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB", 4)


@pytest.fixture
def unread() -> Iterator[int]:
    """Yield the writing end of a full pipe that nobody reads."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    yield write
    os.close(read)
    os.close(write)


def flood(address: str, ended: threading.Event) -> None:
    """Subscribe again and again, and read nothing."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    while not ended.wait(0.005):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0) as raw:
            raw.sendall(GREETING + READY + SUBSCRIPTION * 50)
            while not ended.wait(0.005):
                raw.sendall(SUBSCRIPTION * 50)


def test_no_decision_takes_longer_than_50_ms_whatever_the_sinks_do(tmp_path: Path, unread: int) -> None:
    read, write = os.pipe()
    command = [sys.executable, str(BENCH), str(tmp_path / "s"), str(write)]
    ended = threading.Event()
    with subprocess.Popen(command, stdout=unread, stderr=unread, pass_fds=[write]) as process, os.fdopen(read) as said:
        os.close(write)
        try:
            assert select.select([said], [], [], WITHIN_S)[0], "the instance did not start"
            address = said.readline().strip()
            floods = [threading.Thread(target=flood, args=(address, ended), daemon=True) for _ in range(4)]
            for thread in floods:
                thread.start()
            assert select.select([said], [], [], WITHIN_S)[0], "a decision never came"
            told = json.loads(said.readline())
        finally:
            ended.set()
            process.kill()
    for thread in floods:
        thread.join(WITHIN_S)
    longest_s = [max(of_round) for of_round in told["rounds"]]
    print(f"longest decision of each round: {[round(1000 * s, 1) for s in longest_s]} ms; lost: {told['dropped']}")
    assert min(longest_s) < BOUND_S, "what a sink delays it delays in every round; a busy machine does not"
    assert min(told["evidence_s"]) < BOUND_S
    assert sorted(told["evidence_s"])[len(told["evidence_s"]) // 2] < BOUND_S
    assert told["dropped"].get(COUNTED_AS, 0) > 0, "strangers were heard"
    assert told["dropped"].get("hangs", 0) > 0, "the queue of the sink that hangs was full"
