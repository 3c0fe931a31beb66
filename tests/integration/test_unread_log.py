"""A log that nobody reads, from the start on: every repair and the end come in the usual time, and the gap is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from holdfast.bench.topologies import ONE
from holdfast.chaos.control import Control
from holdfast.chaos.loads import few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.chaos.victims import ProcessKind, find_victims
from integration.helpers.endings import wait_ended
from integration.helpers.servers import V1_SYNC, Servers, left_behind, run
from integration.helpers.streams import assert_exact, begun

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

WITHIN_S = 60.0  # on a busy machine; with a log that blocks nothing comes back at all
END_S = 15.0
NOTICE = re.compile(rb"holdfast: (\d+) log lines dropped: nobody read the log")
LINE = b"a line of a library that writes past every logger of the host\n"


class Log:
    """A pipe with a name, for which there is always a reader that may read nothing."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def fill(self) -> None:
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self._end, b"-" * (size - 1) + b"\n")

    def read_until(self, wanted: bytes) -> bytes:
        read, until_s = b"", time.monotonic() + WITHIN_S
        while wanted not in read:
            assert time.monotonic() < until_s, read[-2000:]
            try:
                read += os.read(self._end, 65536)
            except BlockingIOError:
                time.sleep(0.01)
        return read

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "log")
    made.fill()
    yield made
    made.close()


def asks(salt: str) -> list[StreamSpec]:
    return few_tokens(salt, 60)


def victim(server: Server, kind: ProcessKind) -> int:
    return next(one.pid for one in find_victims(server.pid) if one.kind is kind)


async def killed_in_the_middle(server: Server, kind: ProcessKind) -> tuple[list, float]:
    async with Control(server.url) as control:
        load = Load(server.url, asks(fresh_salt()))
        running = asyncio.create_task(load.run())
        await begun(load)
        before_s = time.monotonic()
        os.kill(victim(server, kind), signal.SIGKILL)
        async with asyncio.timeout(WITHIN_S):
            found = await running
            while await control.unwell() is not None:
                await asyncio.sleep(0.05)
        return found, time.monotonic() - before_s


def log_drains(pid: int) -> list[psutil.Process]:
    """Return the children of a process that empty its output; the owner reaps others a moment after their end."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            found += [child] if "log_drain" in " ".join(child.cmdline()) else []
    return found


def test_an_unread_log_delays_no_start_no_replacement_and_no_end(servers: Servers, log: Log) -> None:
    expected = servers.reference(ONE, V1_SYNC, asks)
    server = servers.unstarted(replace(servers.spec(), log=log.path))
    with server.start():
        for kind in (ProcessKind.WORKER, ProcessKind.ENGINE_CORE):
            found, took_s = run(killed_in_the_middle(server, kind))
            print(f"{kind.name}: well again {took_s:.1f} s after the kill")
            assert_exact(expected, found)
        [drain] = log_drains(server.pid)

        with open(f"/proc/{server.pid}/fd/2", "wb", buffering=0) as output:  # as a library would
            for _ in range(6 * 2**20 // len(LINE)):
                output.write(LINE)
            output.write(b"and the last one\n")
        read = log.read_until(b"and the last one\n")
        dropped = sum(map(int, NOTICE.findall(read)))  # a notice for each time that the log was full
        assert dropped > 2 * 2**20 / len(LINE)

        log.fill()
        began_s = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, END_S) == 0
        print(f"ended {time.monotonic() - began_s:.1f} s after SIGTERM")
        assert left_behind(server) == []
        drain.wait(5)
