"""When a lockstep group cannot go on, because no rank may be replaced: the instance ends, bounded and said clearly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import httpx
import psutil
import pytest

from holdfast.bench.topologies import DP2, MOE_EP, TP2, Topology
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import apply
from integration.helpers.endings import EXIT_DEFEATED, NO_RESTARTS, last_line, wait_ended
from integration.helpers.servers import Servers, in_matrix, left_behind, run

pytestmark = [pytest.mark.host, pytest.mark.server]

Processes = Callable[[Server], list[psutil.Process]]

LONG_TOKENS = 900  # they last longer than it takes to hurt somebody
# Without the watch of stalls, which would be faster than these bounds.
BOUNDS = (
    *NO_RESTARTS,
    *("--min-engines", "2"),  # none is left out
    "--no-stall-detection",
    "--acknowledge-timeout",
    "2",
    "--rebuild-timeout",
    "5",
    "--containment-timeout",
    "8",
)


def workers(server: Server) -> list[psutil.Process]:
    """The worker processes, in the order of their ranks."""
    found = [p for p in psutil.Process(server.pid).children(recursive=True) if "Worker" in p.name()]
    return sorted(found, key=lambda p: p.pid)


def engine_cores(server: Server) -> list[psutil.Process]:
    found = [p for p in psutil.Process(server.pid).children(recursive=True) if "EngineCor" in p.name()]
    return sorted(found, key=lambda p: p.pid)


async def _pause_while_one_is_stopped(server: Server, stopped: psutil.Process) -> list[History]:
    load = Load(server.url, every_feature(fresh_salt(), LONG_TOKENS), timeout_s=60)
    running = asyncio.create_task(load.run())
    async with asyncio.timeout(60):
        while min(len(h.token_ids) for h in load.histories) < 3:
            await asyncio.sleep(0.01)
    stopped.send_signal(signal.SIGSTOP)
    async with control_client(server.url, timeout_s=60) as client:
        answer = await apply(client, "pause")
    assert answer.status_code == 500, answer.text
    return await running


@pytest.mark.parametrize("topology", [TP2, in_matrix(MOE_EP)], ids=lambda t: t.name)
def test_a_rank_that_does_not_acknowledge_ends_the_instance_cleanly(servers: Servers, topology: Topology) -> None:
    with servers.of(topology, arguments=BOUNDS) as server:
        stopped = workers(server)[-1]
        try:
            histories = run(_pause_while_one_is_stopped(server, stopped))
            assert all(h.error for h in histories if not h.finished)
            assert wait_ended(server, 60) == EXIT_DEFEATED
        finally:
            if stopped.is_running():
                stopped.send_signal(signal.SIGCONT)
        assert "did not" in last_line(server)
        assert left_behind(server) == []


@pytest.mark.parametrize(
    ("topology", "who"), [(TP2, workers), in_matrix(DP2, engine_cores), in_matrix(MOE_EP, workers)]
)
def test_a_killed_process_ends_the_instance_cleanly(servers: Servers, topology: Topology, who: Processes) -> None:
    async def scenario(server: Server) -> list[History]:
        load = Load(server.url, every_feature(fresh_salt(), LONG_TOKENS), timeout_s=60)
        running = asyncio.create_task(load.run())
        async with asyncio.timeout(60):
            while min(len(h.token_ids) for h in load.histories) < 3:
                await asyncio.sleep(0.01)
        os.kill(who(server)[-1].pid, signal.SIGKILL)
        return await running

    with servers.of(topology, arguments=BOUNDS) as server:
        histories = run(scenario(server))
        assert any(h.error for h in histories)
        assert wait_ended(server, 60) == EXIT_DEFEATED
        assert "holdfast: instance ended:" in last_line(server)
        assert left_behind(server) == []


def test_a_fault_in_every_rebuild_ends_the_instance_after_the_retries(servers: Servers) -> None:
    async def scenario(server: Server) -> httpx.Response | None:
        async with Control(server.url) as control, control_client(server.url, timeout_s=90) as client:
            await control.inject(InjectionSpec(phase=Phase.REBUILD, rank=1, times=1000))
            await control.inject(InjectionSpec(phase=Phase.FORWARD, rank=1))
            try:
                return await client.post("/v1/completions", json={"prompt": "The keeper", "max_tokens": 30})
            except httpx.HTTPError:
                return None

    arguments = ("--enable-fault-injection", "--max-retries", "3", *NO_RESTARTS, *TP2.arguments)
    with servers.start(*arguments, cold=True) as server:
        answer = run(scenario(server))
        assert answer is None or answer.status_code >= 400
        assert wait_ended(server, 60) == EXIT_DEFEATED
        assert "3 retries" in last_line(server)
        assert left_behind(server) == []
