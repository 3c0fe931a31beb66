"""An engine core that may not be replaced is left out: its siblings go on with its streams, and with what comes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import control_client
from holdfast.chaos.history import History
from holdfast.chaos.server import Server
from integration.helpers.commands import last_sequence, told
from integration.helpers.endings import EXIT_DEFEATED, last_line, wait_ended
from integration.helpers.engines import RESTART_S, engines_of, kill_in_mid_stream, load, wait_healthy
from integration.helpers.processes import api_servers, wait_back
from integration.helpers.servers import V1_SYNC, Servers, left_behind, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.spawned]

GONE_WITHIN_S = 20.0


@pytest.fixture
def server(servers: Servers) -> Iterator[Server]:
    with servers.of(DP2, V1_SYNC, ["--max-engine-restarts", "0"]) as started:
        yield started
    assert left_behind(started) == []


def workers_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def lose(server: Server, engine_id: int) -> list[History]:
    """Kill an engine core under load; what the streams got. Nothing of it is there afterwards."""
    pid = (await engines_of(server))[engine_id]["pid"]
    its_own = [psutil.Process(pid), *workers_of(pid)]
    running = load(server, 2)
    streams = asyncio.create_task(running.run())
    await kill_in_mid_stream(server, running, engine_id)
    observed = await streams
    async with asyncio.timeout(GONE_WITHIN_S):
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in its_own):
            await asyncio.sleep(0.1)
    return observed


async def assert_exact(server: Server, reference: list[History]) -> None:
    """Requests that name the one that is left out are served as well."""
    verdict = compare_runs(reference, await load(server, 2).run())
    assert verdict.exact, verdict.reasons


async def assert_serves_without(server: Server, engine_id: int) -> None:
    async with control_client(server.url, timeout_s=30) as client:
        status = (await client.get("/fault_tolerance/status")).json()
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/fault_tolerance/ready")).status_code == 200
    engine = status["engines"][engine_id]
    assert (engine["state"], engine["status"]) == ("left-out", "dead")
    assert "left out, 1 engine cores serve on; not tried again" in engine["reason"]


async def restart(server: Server, engine_id: int) -> None:
    async with control_client(server.url, timeout_s=RESTART_S) as client:
        await told(client, "restart-engine", engine_id=engine_id)
    await wait_healthy(server)


async def lose_and_serve_on(server: Server, engine_id: int, reference: list[History]) -> None:
    verdict = compare_runs(reference, await lose(server, engine_id))
    assert verdict.exact, verdict.reasons
    await assert_serves_without(server, engine_id)
    await assert_exact(server, reference)


def test_its_sibling_serves_on_and_without_both_the_instance_ends(server: Server) -> None:
    async def scenario() -> None:
        await lose_and_serve_on(server, 1, await load(server, 2).run())
        os.kill((await engines_of(server))[0]["pid"], signal.SIGKILL)

    run(scenario())
    assert wait_ended(server, 40) == EXIT_DEFEATED
    assert "engine core 0 was lost" in last_line(server)


@pytest.mark.matrix
def test_it_comes_back_when_told_to_and_then_its_sibling_may_be_lost(server: Server) -> None:
    async def scenario() -> None:
        reference = await load(server, 2).run()
        await lose_and_serve_on(server, 1, reference)
        await restart(server, 1)
        await assert_exact(server, reference)
        await lose_and_serve_on(server, 0, reference)

    run(scenario())


@pytest.mark.matrix
@pytest.mark.parametrize("engine_id", [0, 1])
def test_an_api_server_that_starts_meanwhile_serves_without_it_too(server: Server, engine_id: int) -> None:
    async def scenario() -> None:
        reference = await load(server, 2).run()
        await lose(server, engine_id)
        for _ in range(2):  # both of them: whoever answers was started after the loss
            before = await last_sequence(server)
            os.kill(api_servers(server)[0], signal.SIGKILL)
            await wait_back(server, before)
        await assert_serves_without(server, engine_id)
        await assert_exact(server, reference)
        await restart(server, engine_id)
        await assert_exact(server, reference)

    run(scenario())
