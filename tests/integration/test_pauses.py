"""Paused and resumed by hand: under load and idle, all or one, softly and hard; no token is lost or changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import httpx
import pytest

from holdfast.bench.topologies import DP2, MOE_EP, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import apply, states, told
from integration.helpers.servers import V1_ASYNC, V1_SYNC, Servers, in_matrix, run, served_name, well
from integration.helpers.streams import STANDS_S, tokens, wait_without_requests

pytestmark = [pytest.mark.host, pytest.mark.server]

MODES = pytest.mark.parametrize("mode", ["soft", "hard"])


@dataclass(frozen=True)
class Bench:
    server: Server
    topology: Topology
    expected: list[History]

    def client(self) -> httpx.AsyncClient:
        return control_client(self.server.url, timeout_s=60)

    def load(self) -> Load:
        return Load(self.server.url, every_feature(fresh_salt()))

    def assert_well(self) -> None:
        assert run(well(self.server)) is None


ONE_ENGINE, OTHERS = (TP2, V1_ASYNC), [(DP2, V1_SYNC), (MOE_EP, V1_SYNC)]
EVERYWHERE = pytest.mark.parametrize("bench", [ONE_ENGINE, *OTHERS], ids=served_name, indirect=True)


@pytest.fixture(params=[in_matrix(ONE_ENGINE), *OTHERS], ids=served_name)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Bench:
    topology, kind = request.param
    expected = servers.reference(topology, kind, every_feature)
    return Bench(servers.shared_of(topology, kind), topology, expected)


async def flowing(load: Load) -> None:
    """Wait until every stream has had a few tokens."""
    async with asyncio.timeout(60):
        while min(len(h.token_ids) for h in load.histories) < 4:
            await asyncio.sleep(0.01)


async def _pause_and_resume(bench: Bench, load: Load, mode: str) -> tuple[list[History], int, int]:
    async with bench.client() as client:
        running = asyncio.create_task(load.run())
        await flowing(load)
        await told(client, "pause", mode=mode)
        assert set(await states(client)) == {"paused"}
        await asyncio.sleep(0.1)  # what was under way to the client arrives
        before = tokens(load.histories)
        await asyncio.sleep(STANDS_S)
        after = tokens(load.histories)
        await told(client, "resume")
        return await running, before, after


@EVERYWHERE
@MODES
def test_a_pause_under_load_stops_every_stream_and_a_resume_changes_no_token(bench: Bench, mode: str) -> None:
    found, before, after = run(_pause_and_resume(bench, bench.load(), mode))
    assert before == after
    verdict = compare_runs(bench.expected, found)
    assert verdict.exact, verdict.reasons
    bench.assert_well()


@MODES
def test_an_idle_instance_pauses_and_resumes(bench: Bench, mode: str) -> None:
    async def scenario() -> None:
        async with bench.client() as client:
            await told(client, "pause", mode=mode)
            assert set(await states(client)) == {"paused"}
            assert (await client.get("/fault_tolerance/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
            await told(client, "resume")

    run(scenario())
    bench.assert_well()
    verdict = compare_runs(bench.expected, run(bench.load().run()))
    assert verdict.exact, verdict.reasons


def test_what_arrives_in_a_pause_is_served_after_it(bench: Bench) -> None:
    async def scenario() -> list[History]:
        async with bench.client() as client:
            await told(client, "pause")
            arriving = bench.load()
            running = asyncio.create_task(arriving.run())
            await asyncio.sleep(STANDS_S)
            assert tokens(arriving.histories) == 0
            await told(client, "resume")
            return await running

    verdict = compare_runs(bench.expected, run(scenario()))
    assert verdict.exact, verdict.reasons


def test_a_pause_after_which_every_client_leaves_keeps_no_request(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.client() as client:
            load = bench.load()
            running = asyncio.create_task(load.run())
            await flowing(load)
            await told(client, "pause")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await told(client, "resume")
            await wait_without_requests(client)

    run(scenario())
    bench.assert_well()
    verdict = compare_runs(bench.expected, run(bench.load().run()))
    assert verdict.exact, verdict.reasons


def test_a_fault_that_waits_for_the_resume_changes_no_token(bench: Bench) -> None:
    async def scenario() -> list[History]:
        async with bench.client() as client, Control(bench.server.url) as control:
            load = bench.load()
            running = asyncio.create_task(load.run())
            await flowing(load)
            before = await control.last_sequence()
            await told(client, "pause")
            engine, rank = bench.topology.places[1]
            await control.inject(InjectionSpec(phase=Phase.STEP_START, engine_id=engine, rank=rank))
            resumed = await apply(client, "resume")  # the fault may strike before the last rank is in again
            assert resumed.status_code == 200 or "InjectedFault" in resumed.text
            found = await running
            await control.wait_recovered(before, faults=2)
            return found

    verdict = compare_runs(bench.expected, run(scenario()))
    assert verdict.exact, verdict.reasons
    bench.assert_well()


def test_what_makes_no_sense_is_refused_and_loses_nothing(bench: Bench) -> None:
    async def scenario() -> None:
        async with bench.client() as client:
            assert (await apply(client, "resume")).status_code == 409
            assert (await apply(client, "pause", engine_id=7)).status_code == 404
            await told(client, "pause")
            assert (await apply(client, "pause")).status_code == 409
            await told(client, "resume", engine_ids=[0])
            if bench.topology.engines > 1 and not bench.topology.lockstep:
                assert await states(client) == ["healthy", "paused"]
                await told(client, "resume", engine_id=1)

    run(scenario())
    bench.assert_well()


def on_engine(engine_id: int, max_tokens: int) -> list[StreamSpec]:
    """Greedy streams that name the engine that serves them."""
    greedy = replace(every_feature(fresh_salt())[0], data_parallel_rank=engine_id, max_tokens=max_tokens)
    return [replace(greedy, name=f"e{engine_id}-{i}", prompt=f"The keeper {i}") for i in range(3)]


def test_one_engine_that_is_paused_stops_its_lockstep_group_and_nobody_else(bench: Bench) -> None:
    if bench.topology.engines == 1:
        pytest.skip("there is one engine only")

    async def scenario() -> tuple[int, int]:
        async with bench.client() as client:
            streaming = Load(bench.server.url, on_engine(1, max_tokens=1500))
            streams = asyncio.create_task(streaming.run())
            await flowing(streaming)
            await told(client, "pause", engine_id=1)
            await asyncio.sleep(0.1)  # what was under way to the client arrives
            before = tokens(streaming.histories)
            asked_beside = Load(bench.server.url, on_engine(0, max_tokens=90))
            served = asyncio.create_task(asked_beside.run())
            await asyncio.wait([served], timeout=STANDS_S if bench.topology.lockstep else 30)
            moved, beside = tokens(streaming.histories) - before, tokens(asked_beside.histories)
            await told(client, "resume", engine_id=1)
            await asyncio.gather(streams, served)
            return moved, beside

    moved, beside = run(scenario())
    assert moved == 0
    assert beside == (0 if bench.topology.lockstep else 3 * 90)
    bench.assert_well()
