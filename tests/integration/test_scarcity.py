"""Repairs on a machine that is out of something: no room on the disk, no descriptor for a further file."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path

import pytest

from holdfast.bench.topologies import ONE
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.chaos.loads import few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.chaos.temporary_files import left_in, temporary_folder
from holdfast.chaos.victims import ProcessKind, find_victims, kill
from holdfast.progress.places import PREFIX, reserve_of
from integration.helpers.engines import RESTART_S
from integration.helpers.servers import NO_LIMITS, Servers, left_behind, run, well
from integration.helpers.streams import begun
from support.full_disk import can_mount, fill, small_disk

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

TOKENS = 40
FOR_CLIENTS = 12  # descriptors of the owner that are left for the connections of the test


def asked(salt: str) -> list[StreamSpec]:
    return few_tokens(salt, TOKENS)


async def killed_run(server: Server, kind: ProcessKind) -> list[History]:
    """Kill a process in the middle of a load, and wait until all is well again."""
    running = Load(server.url, asked(fresh_salt()))
    streams = asyncio.create_task(running.run())
    await begun(running)
    [victim] = [one for one in find_victims(server.pid) if one.kind is kind]
    kill(victim)
    histories = await streams
    async with asyncio.timeout(RESTART_S):
        while await well(server) is not None:
            await asyncio.sleep(0.1)
    assert victim.pid not in {one.pid for one in find_victims(server.pid)}
    return histories


def assert_repaired(server: Server, expected: list[History]) -> None:
    for kind in (ProcessKind.WORKER, ProcessKind.ENGINE_CORE):
        verdict = compare_runs(expected, run(killed_run(server, kind)))
        assert verdict.exact, (kind, verdict.reasons)


@pytest.mark.skipif(not can_mount(), reason="mounts a file system")
@pytest.mark.spawned
@pytest.mark.matrix  # a minute and more on two processors
def test_killed_processes_are_replaced_on_a_full_disk(servers: Servers) -> None:
    with temporary_folder() as disk, small_disk(Path(disk), files=4000):
        with servers.of(
            ONE, arguments=(*NO_LIMITS, "--no-stall-detection"), TMPDIR=str(disk), HOLDFAST_API_KEY="token"
        ) as server:
            expected = run(Load(server.url, asked(fresh_salt())).run())
            reserves = [reserve_of(str(folder)) for folder in Path(disk).glob(f"{PREFIX}*")]
            assert reserves
            fill(disk)
            assert_repaired(server, expected)
            os.kill(server.pid, signal.SIGTERM)
        assert left_behind(server) == []
        assert [name for name in left_in(disk) if not name.startswith(("content", "file-"))] == []
    assert [reserve for reserve in reserves if reserve.exists()] == []


def leave_descriptors(pid: int, left: int) -> None:
    """Let a process open so many more files and no further one, whatever it raises."""
    limit = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + left
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))


@pytest.mark.matrix  # the reserve has quick tests of its own
def test_killed_processes_are_replaced_where_the_owner_has_no_descriptor_left(servers: Servers) -> None:
    arguments = (*NO_LIMITS, "--no-stall-detection")
    with servers.of(ONE, arguments=arguments, HOLDFAST_API_KEY="token") as server:
        expected = run(Load(server.url, asked(fresh_salt())).run())
        leave_descriptors(server.pid, FOR_CLIENTS)
        assert_repaired(server, expected)
        os.kill(server.pid, signal.SIGTERM)
    assert left_behind(server) == []
