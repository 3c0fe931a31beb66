"""A killed data-parallel coordinator interrupts nothing, and who comes while it is away is served all the same."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from holdfast.bench.topologies import DP2, MOE, MOE_EP
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from integration.helpers.commands import last_sequence
from integration.helpers.endings import END_S, EXIT_DEFEATED, last_line, wait_ended
from integration.helpers.engines import kill_in_mid_stream, wait_healthy
from integration.helpers.servers import V1_SYNC, Servers, in_matrix, left_behind, run, served_name
from integration.helpers.streams import IDLE_S, begun

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.spawned]

TOKENS = 90
BACK_WITHIN_S = 60.0
SERVED = [(MOE_EP, V1_SYNC), in_matrix((DP2, V1_SYNC)), in_matrix((MOE, V1_SYNC))]


@pytest.fixture(params=SERVED, ids=served_name)
def instance(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.shared_of(*request.param)


def coordinator_of(server: Server) -> psutil.Process:
    children = psutil.Process(server.pid).children(recursive=True)
    [found] = [p for p in children if "Coordinator" in p.name()]
    return found


def load(server: Server) -> Load:
    return Load(server.url, every_feature(fresh_salt(), TOKENS))


async def process_events(server: Server, after: int) -> list[str]:
    async with Control(server.url) as control:
        return [e["kind"] for e in await control.events(after) if e.get("process") == "coordinator"]


async def wait_back(server: Server, after: int) -> None:
    async with asyncio.timeout(BACK_WITHIN_S):
        while await process_events(server, after) != ["process-lost", "process-restarted"]:
            await asyncio.sleep(0.1)


def test_streams_and_those_that_follow_know_nothing_of_a_lost_coordinator(instance: Server) -> None:
    async def scenario() -> None:
        reference, before = await load(instance).run(), await last_sequence(instance)
        running = load(instance)
        streams = asyncio.create_task(running.run())
        await begun(running)
        coordinator_of(instance).send_signal(signal.SIGKILL)
        for observed in (await streams, await load(instance).run()):
            verdict = compare_runs(reference, observed)
            assert verdict.exact, verdict.reasons
        await wait_back(instance, before)
        verdict = compare_runs(reference, await load(instance).run())
        assert verdict.exact, verdict.reasons
        async with Control(instance.url) as control:
            assert await control.unwell() is None

    run(scenario())


def test_who_comes_to_an_idle_instance_without_a_coordinator_is_served(instance: Server) -> None:
    """In lockstep the engine core that takes the first request steps alone until a coordinator wakes the others."""

    async def scenario() -> None:
        reference, before = await load(instance).run(), await last_sequence(instance)
        await asyncio.sleep(IDLE_S)
        coordinator_of(instance).send_signal(signal.SIGKILL)
        verdict = compare_runs(reference, await load(instance).run())
        assert verdict.exact, verdict.reasons
        await wait_back(instance, before)
        await asyncio.sleep(IDLE_S)
        verdict = compare_runs(reference, await load(instance).run())
        assert verdict.exact, verdict.reasons

    run(scenario())


@pytest.mark.matrix
def test_a_coordinator_and_an_engine_core_may_be_lost_at_once(instance: Server) -> None:
    async def scenario() -> None:
        reference, before = await load(instance).run(), await last_sequence(instance)
        running = load(instance)
        streams = asyncio.create_task(running.run())
        await kill_in_mid_stream(instance, running, 1)
        coordinator_of(instance).send_signal(signal.SIGKILL)
        verdict = compare_runs(reference, await streams)
        assert verdict.exact, verdict.reasons
        await wait_back(instance, before)
        await wait_healthy(instance)
        await asyncio.sleep(IDLE_S)
        verdict = compare_runs(reference, await load(instance).run())
        assert verdict.exact, verdict.reasons

    run(scenario())


@pytest.mark.matrix
@pytest.mark.parametrize("api_servers", [2, 1])
def test_without_a_restart_left_the_instance_ends_and_says_why(servers: Servers, api_servers: int) -> None:
    arguments = ("--max-api-server-restarts", "0", "--api-server-count", str(api_servers))
    with servers.of(DP2, arguments=arguments) as server:
        coordinator_of(server).send_signal(signal.SIGKILL)
        assert wait_ended(server, END_S) == EXIT_DEFEATED
        assert "coordinator was lost: exit code -9; restarts of this process are off" in last_line(server)
        assert left_behind(server) == []


@pytest.mark.matrix
def test_where_somebody_outside_decides_about_faults_another_coordinator_comes_all_the_same(servers: Servers) -> None:
    arguments = ("--fault-policy", "external", "--api-server-count", "1")
    with servers.of(DP2, arguments=arguments) as server:
        coordinator_of(server).send_signal(signal.SIGKILL)
        run(wait_back(server, 0))
        verdict = compare_runs(run(load(server).run()), run(load(server).run()))
        assert verdict.exact, verdict.reasons


@pytest.mark.matrix
def test_a_coordinator_that_is_being_started_ends_with_the_others(servers: Servers) -> None:
    with servers.of(DP2, arguments=("--api-server-count", "1")) as server:
        gone = coordinator_of(server)
        gone.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + BACK_WITHIN_S
        while coordinator_count(server, but=gone.pid) == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, END_S) == 0
        assert left_behind(server) == []


def coordinator_count(server: Server, but: int) -> int:
    """Processes of the owner beside those that it had; a process that starts has no name of its own yet."""
    children = psutil.Process(server.pid).children()
    return sum(1 for p in children if p.pid > but)
