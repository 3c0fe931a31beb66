"""A killed engine core loses no request: its streams go on with a sibling, or on the process that takes its place."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs, spread_of
from holdfast.chaos.control import control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.core.faults.faults import Phase
from integration.helpers.engines import (
    RESTART_S,
    crashed_run,
    engines_of,
    for_two,
    kill_in_mid_stream,
    load,
    replaced_at,
    spread,
    wait_healthy,
    wait_replaced,
)
from integration.helpers.servers import V1_SYNC, Servers, in_matrix, run, served_name
from integration.helpers.streams import counted, interruptions

pytestmark = [pytest.mark.host, pytest.mark.server]


@pytest.fixture(params=[(DP2, V1_SYNC)], ids=served_name)
def pair(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Two dense engines behind two API servers, the default."""
    return servers.shared_of(*request.param)


@pytest.fixture
def reference(pair: Server, servers: Servers) -> list[History]:
    return servers.reference(DP2, V1_SYNC, for_two)


async def compile_everywhere(server: Server) -> None:
    """What a process compiles when a feature is first used costs seconds, with or without a fault."""
    for engine_id in (0, 1):
        specs = [replace(spec, data_parallel_rank=engine_id) for spec in every_feature(fresh_salt(), 10)]
        await Load(server.url, specs).run()


async def killed_run(server: Server, running: Load, engine_id: int) -> tuple[list[History], float]:
    streams = asyncio.create_task(running.run())
    killed_at = await kill_in_mid_stream(server, running, engine_id)
    return await streams, killed_at


@pytest.mark.parametrize("engine_id", [in_matrix(0), 1])
@pytest.mark.timed
@pytest.mark.spawned
def test_streams_go_on_with_a_sibling_at_once_token_for_token(
    pair: Server, reference: list[History], engine_id: int
) -> None:
    async def scenario() -> None:
        await compile_everywhere(pair)
        running, newcomer = load(pair, 2), asyncio.create_task(replaced_at(pair, engine_id))
        observed, killed_at = await killed_run(pair, running, engine_id)
        verdict = compare_runs(reference, observed)
        assert verdict.exact, verdict.reasons
        waits = interruptions([h for h in observed if h.engine_id == engine_id], killed_at)
        assert len(waits) >= 3, "the kill came too late to interrupt anything"
        lag_s = running.longest_lag_s(killed_at, killed_at + 1.0)  # the client's own, on a busy machine
        waited_s, newcomer_s = spread_of(waits).median, await newcomer - killed_at
        assert waited_s < 1.0 + lag_s, (waits, lag_s)  # 0.1 s where nothing else runs
        assert waited_s < newcomer_s / 4, (waits, newcomer_s)
        verdict = compare_runs(reference, await load(pair, 2).run())  # pinned: the newcomer computes its share
        assert verdict.exact, verdict.reasons

    run(scenario())


@pytest.mark.parametrize("phase", [Phase.SCHEDULE_END, in_matrix(Phase.OUTPUT_END), in_matrix(Phase.RECOVERY)])
def test_an_engine_core_that_raises_its_last_error_is_like_a_killed_one(
    pair: Server, reference: list[History], phase: Phase
) -> None:
    """The host tells its clients that it is dead, and they would end every request, also those of its sibling."""

    async def scenario() -> None:
        observed, why = await crashed_run(pair, load(pair, 2), 1, phase)
        verdict = compare_runs(reference, observed)
        assert verdict.exact, verdict.reasons
        assert "engine core 1 was lost: exit code 1" in why
        await wait_healthy(pair)
        verdict = compare_runs(reference, await load(pair, 2).run())
        assert verdict.exact, verdict.reasons

    run(scenario())


def test_a_sibling_that_is_killed_while_the_first_one_is_replaced_costs_no_token(
    pair: Server, reference: list[History]
) -> None:
    """For a while there is nobody: every stream waits for the first newcomer."""

    async def scenario() -> None:
        running = load(pair, 2)
        streams = asyncio.create_task(running.run())
        await kill_in_mid_stream(pair, running, 0)
        async with asyncio.timeout(RESTART_S):
            while (await engines_of(pair))[0]["state"] != "restarting":
                await asyncio.sleep(0.01)
        os.kill((await engines_of(pair))[1]["pid"], signal.SIGKILL)
        verdict = compare_runs(reference, await streams)
        assert verdict.exact, verdict.reasons
        await wait_healthy(pair)

    run(scenario())


def test_a_stream_that_was_cancelled_is_not_resumed(pair: Server) -> None:
    """None of them comes to its own end, which one that was resumed would."""

    async def scenario() -> None:
        async with control_client(pair.url, timeout_s=30) as client:

            async def sample(name: str, label: str) -> float:
                return counted((await client.get("/metrics")).text, name, label)

            ended = await sample("vllm:request_success_total", 'finished_reason="length"')
            pid = (await engines_of(pair))[0]["pid"]
            greedy = replace(every_feature(fresh_salt())[0], max_tokens=1500)  # none ends before it is cancelled
            specs = [replace(greedy, name=f"s{i}", prompt=f"The keeper {i}") for i in range(4)]
            running = Load(pair.url, spread(specs, 2))
            streams = asyncio.create_task(running.run())
            await kill_in_mid_stream(pair, running, 0)
            streams.cancel()
            await wait_replaced(pair, 0, pid)
            async with asyncio.timeout(60):
                while await sample("vllm:num_requests_running", "engine="):
                    await asyncio.sleep(0.1)
            assert await sample("vllm:request_success_total", 'finished_reason="length"') == ended

    run(scenario())
