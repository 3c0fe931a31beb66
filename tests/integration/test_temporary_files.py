"""What an instance puts into the temporary folder goes with it, whatever was killed meanwhile and however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.bench.topologies import DP2, MOE_EP, ONE, Topology
from holdfast.chaos.control import Control, ControlFailed
from holdfast.chaos.server import Server
from holdfast.chaos.temporary_files import left_in, temporary_folder
from holdfast.chaos.victims import ProcessKind, Victim, count_by_kind, find_victims, kill
from integration.helpers.endings import EXIT_DEFEATED, wait_ended
from integration.helpers.servers import Servers, in_matrix, left_behind, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

HEAL_WITHIN_S = 120.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with temporary_folder() as made:
        yield made


async def kill_one_of(server: Server, kind: ProcessKind) -> None:
    """And wait until another process is in its place and all is well."""
    before = [one for one in find_victims(server.pid) if one.kind is kind]
    kill(before[0])
    async with Control(server.url) as control, asyncio.timeout(HEAL_WITHIN_S):
        while not await is_replaced(control, server, before[0], len(before)):
            await asyncio.sleep(0.2)


async def is_replaced(control: Control, server: Server, killed: Victim, count: int) -> bool:
    present = [one.pid for one in find_victims(server.pid) if one.kind is killed.kind]
    if killed.pid in present or len(present) < count:
        return False
    try:
        return await control.unwell() is None
    except ControlFailed:  # the connection was to the one that was killed
        return False


@pytest.mark.parametrize("topology", [ONE, in_matrix(DP2), in_matrix(MOE_EP)], ids=lambda t: t.name)
@pytest.mark.spawned
def test_an_orderly_end_after_kills_of_every_kind_leaves_nothing(
    servers: Servers, folder: Path, topology: Topology
) -> None:
    server = servers.of(topology, TMPDIR=str(folder), HOLDFAST_API_KEY="token")
    with server:
        for kind in sorted(count_by_kind(find_victims(server.pid))):
            run(kill_one_of(server, kind))
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, 30) == 0
    assert left_behind(server) == []
    assert left_in(folder) == []


@pytest.mark.parametrize("topology", [ONE, in_matrix(DP2)], ids=lambda t: t.name)
def test_a_defeated_instance_leaves_nothing(servers: Servers, folder: Path, topology: Topology) -> None:
    arguments = ("--max-engine-restarts", "0", "--min-engines", str(topology.engines))  # none is left out
    with servers.of(topology, arguments=arguments, TMPDIR=str(folder), HOLDFAST_API_KEY="token") as server:
        [victim, *_] = [one for one in find_victims(server.pid) if one.kind is ProcessKind.ENGINE_CORE]
        kill(victim)
        assert wait_ended(server, 40) == EXIT_DEFEATED
    assert left_in(folder) == []
