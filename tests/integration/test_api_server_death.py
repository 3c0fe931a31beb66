"""A killed API server of several costs the connections that it had, and nothing else: another one takes its place."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import psutil
import pytest

from holdfast.bench.topologies import DP2, MOE_EP
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.commands import apply, last_sequence
from integration.helpers.endings import END_S, EXIT_DEFEATED, last_line, wait_ended
from integration.helpers.engines import engines_of, wait_healthy
from integration.helpers.processes import BACK_WITHIN_S, api_servers, on_many_connections, process_events_of, wait_back
from integration.helpers.servers import V1_SYNC, Asks, Servers, in_matrix, left_behind, run, served_name
from integration.helpers.streams import counted

pytestmark = [pytest.mark.host, pytest.mark.server]

TOKENS = 100
# An engine core is far ahead of a client on a busy machine: enough that the kill comes in the middle.
MANY_TOKENS = 700

EMPTY_WITHIN_S = 20.0


@pytest.fixture(params=[(DP2, V1_SYNC), in_matrix((MOE_EP, V1_SYNC))], ids=served_name)
def instance(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Two engines behind two API servers, the default."""
    return servers.shared_of(*request.param)


def few(salt: str) -> list[StreamSpec]:
    return every_feature(salt, TOKENS)


def many(salt: str) -> list[StreamSpec]:
    return every_feature(salt, MANY_TOKENS)


@dataclass(frozen=True)
class References:
    """The fault-free runs of both loads."""

    few: list[History]
    many: list[History]


@pytest.fixture
def references(request: pytest.FixtureRequest, instance: Server, servers: Servers) -> References:
    served = request.node.callspec.params["instance"]
    return References(servers.reference(*served, few), servers.reference(*served, many))


def load(server: Server, asked: Asks = few) -> Load:
    return Load(server.url, asked(fresh_salt()))


async def wait_empty(server: Server) -> None:
    """No engine core computes anything any more."""
    async with asyncio.timeout(EMPTY_WITHIN_S):
        while True:
            async with control_client(server.url, timeout_s=30) as client:
                metrics = (await client.get("/metrics")).text
            if not counted(metrics, "vllm:num_requests_running", "engine="):
                return
            await asyncio.sleep(0.1)


async def begun(running: Load) -> None:
    async with asyncio.timeout(60):
        while min(len(h.token_ids) for h in running.histories) < 5:
            await asyncio.sleep(0.005)


def last_started(server: Server) -> int:
    return max(api_servers(server))


def connections(server: Server, pid: int) -> int:
    """How many clients an API server serves now."""
    open_ones = psutil.Process(pid).net_connections(kind="tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == server.port for c in open_ones)


async def load_both(server: Server, victim: int) -> list[tuple[Load, asyncio.Task[list[History]]]]:
    """Loads until each of the two servers has streams: the kernel and they themselves spread connections.

    The victim is stopped as soon as it has: on a busy machine its streams would be sent before the client reads them.
    """
    running: list[tuple[Load, asyncio.Task[list[History]]]] = []
    async with asyncio.timeout(60):
        while any(connections(server, pid) for pid in api_servers(server)):  # those of before are being closed
            await asyncio.sleep(0.05)
        while not all(connections(server, pid) > 1 for pid in api_servers(server)):
            one = load(server, many)
            running.append((one, asyncio.create_task(one.run())))
            while not any(h.token_ids for h in one.histories):
                await asyncio.sleep(0.001)
            os.kill(victim, signal.SIGSTOP)
            if connections(server, victim) < 2:
                os.kill(victim, signal.SIGCONT)
    return running


def assert_exact_but_those_that_ended(reference: list[History], observed: list[History]) -> int:
    """How many ended with an error; the others are those of a run without a fault."""
    ended = {h.name for h in observed if h.error}
    rest = [h for h in observed if h.name not in ended]
    verdict = compare_runs([h for h in reference if h.name not in ended], rest)
    assert verdict.exact, verdict.reasons
    return len(ended)


async def assert_every_server_is_exact(server: Server, reference: list[History]) -> None:
    """Connections are spread over the servers: of so many both have some."""
    for observed in await asyncio.gather(*(load(server).run() for _ in range(3))):
        verdict = compare_runs(reference, observed)
        assert verdict.exact, verdict.reasons
    answers = await on_many_connections(server, "/fault_tolerance/status")
    assert {a.status_code for a in answers} == {200}
    assert len({a.text for a in answers}) == 1


@pytest.mark.timed
@pytest.mark.spawned
def test_only_the_streams_of_a_killed_api_server_end(instance: Server, references: References) -> None:
    async def scenario() -> None:
        before = await last_sequence(instance)
        victim = last_started(instance)
        running = await load_both(instance, victim)
        os.kill(victim, signal.SIGKILL)
        histories = [await streams for _, streams in running]
        ended = sum(assert_exact_but_those_that_ended(references.many, observed) for observed in histories)
        assert 0 < ended < sum(map(len, histories))
        await wait_empty(instance)
        await wait_back(instance, before)
        lost, back = await process_events_of(instance, before)
        assert lost.startswith("process-lost api-server-")
        assert back == lost.replace("lost", "restarted", 1)
        assert len(api_servers(instance)) == 2
        await assert_every_server_is_exact(instance, references.few)
        async with control_client(instance.url, timeout_s=30) as client:
            assert (await apply(client, "pause")).status_code == 200
        for _ in range(6):  # each on a connection of its own
            async with control_client(instance.url, timeout_s=30) as client:
                assert (await apply(client, "pause")).status_code == 409
        async with control_client(instance.url, timeout_s=30) as client:
            assert (await apply(client, "resume")).status_code == 200

    run(scenario())


@pytest.mark.timed
@pytest.mark.spawned
def test_an_engine_core_lost_meanwhile_costs_the_living_server_nothing(
    instance: Server, references: References
) -> None:
    async def scenario() -> None:
        before = await last_sequence(instance)
        os.kill(last_started(instance), signal.SIGKILL)
        async with asyncio.timeout(BACK_WITHIN_S):
            while not await process_events_of(instance, before):  # the living one takes every connection from now on
                await asyncio.sleep(0.05)
        running = load(instance, many)
        streams = asyncio.create_task(running.run())
        await begun(running)
        os.kill((await engines_of(instance))[1]["pid"], signal.SIGKILL)
        verdict = compare_runs(references.many, await streams)
        assert verdict.exact, verdict.reasons
        await wait_back(instance, before)
        await wait_healthy(instance)
        await assert_every_server_is_exact(instance, references.few)

    run(scenario())


@pytest.mark.spawned
def test_an_instance_that_is_told_to_end_meanwhile_ends_with_everybody(servers: Servers) -> None:
    with servers.of(DP2, cold=True) as server:
        before = set(api_servers(server))
        os.kill(max(before), signal.SIGKILL)
        deadline = time.monotonic() + BACK_WITHIN_S
        while not newcomers(server, before):
            assert time.monotonic() < deadline, "no replacement began to start"
            time.sleep(0.05)
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, END_S) == 0
        assert left_behind(server) == []


def newcomers(server: Server, before: set[int]) -> list[int]:
    """Processes of the launcher that are younger than its API servers; one that starts has no name of its own yet."""
    return [p.pid for p in psutil.Process(server.pid).children() if p.pid > max(before)]


def test_without_a_restart_left_the_instance_ends_and_says_why(servers: Servers) -> None:
    with servers.of(DP2, arguments=("--max-api-server-restarts", "0")) as server:
        os.kill(last_started(server), signal.SIGKILL)
        assert wait_ended(server, END_S) == EXIT_DEFEATED
        assert "was lost: exit code -9; restarts of this process are off" in last_line(server)
        assert left_behind(server) == []
