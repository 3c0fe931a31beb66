"""One engine core alone is killed: its streams wait for the process that takes its place, and go on there."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import psutil
import pytest

from holdfast.bench.topologies import ONE
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import control_client
from holdfast.chaos.history import History
from holdfast.chaos.server import Server
from holdfast.chaos.streams import MODEL_NAME
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import configured, told
from integration.helpers.endings import hurt, wait_ended
from integration.helpers.engines import (
    RESTART_S,
    crashed_run,
    engines_of,
    for_one,
    kill_in_mid_stream,
    load,
    wait_healthy,
)
from integration.helpers.servers import V1_SYNC, Servers, left_behind, run
from integration.helpers.streams import STANDS_S, begun, tokens

pytestmark = [pytest.mark.host, pytest.mark.server]


@pytest.fixture
def alone(servers: Servers) -> Server:
    return servers.shared(V1_SYNC)


@pytest.fixture
def reference(alone: Server, servers: Servers) -> list[History]:
    return servers.reference(ONE, V1_SYNC, for_one)


@pytest.mark.spawned
def test_without_a_sibling_streams_wait_for_the_process_that_takes_its_place(
    alone: Server, reference: list[History]
) -> None:
    async def scenario() -> None:
        running = load(alone, 1)
        streams = asyncio.create_task(running.run())
        await kill_in_mid_stream(alone, running, 0)
        async with control_client(alone.url, timeout_s=RESTART_S) as client:
            await asyncio.sleep(0.5)
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/fault_tolerance/ready")).status_code == 503
            arrives = await client.post("/v1/completions", json={"model": MODEL_NAME, "prompt": "The", "max_tokens": 5})
            assert arrives.status_code == 200  # it waited, as the others do
        verdict = compare_runs(reference, await streams)
        assert verdict.exact, verdict.reasons

    run(scenario())


def test_an_engine_core_that_raises_its_last_error_is_replaced_too(alone: Server, reference: list[History]) -> None:
    async def scenario() -> None:
        await wait_healthy(alone)
        observed, why = await crashed_run(alone, load(alone, 1), 0, Phase.SCHEDULE_END)
        verdict = compare_runs(reference, observed)
        assert verdict.exact, verdict.reasons
        assert "engine core 0 was lost: exit code 1" in why

    run(scenario())


def test_an_engine_core_lost_in_a_pause_by_the_operator_comes_back_paused(
    alone: Server, reference: list[History]
) -> None:
    async def scenario() -> None:
        await wait_healthy(alone)
        running = load(alone, 1)
        streams = asyncio.create_task(running.run())
        await begun(running)
        async with control_client(alone.url, timeout_s=RESTART_S) as client:
            await told(client, "pause")
            [engine] = await engines_of(alone)
            os.kill(engine["pid"], signal.SIGKILL)
            async with asyncio.timeout(RESTART_S):
                while (now := (await engines_of(alone))[0])["state"] != "paused" or now["pid"] == engine["pid"]:
                    await asyncio.sleep(0.05)
                    assert now["state"] != "healthy"
            delivered = tokens(running.histories)
            await asyncio.sleep(STANDS_S)
            assert tokens(running.histories) == delivered
            await told(client, "resume")
        verdict = compare_runs(reference, await streams)
        assert verdict.exact, verdict.reasons

    run(scenario())


def test_where_no_recovery_lasts_another_engine_core_answers(alone: Server) -> None:
    """The climb: retries fail, nobody knows a rank to blame, and what is wrong with the process goes with it."""
    run(wait_healthy(alone))
    [before] = run(engines_of(alone))
    with configured(alone, max_retries=2):
        answer = run(hurt(alone, InjectionSpec(phase=Phase.RECOVERY, times=1000), InjectionSpec(phase=Phase.FORWARD)))
    assert isinstance(answer, httpx.Response)
    assert answer.status_code == 200
    [after] = run(engines_of(alone))
    assert after["restarts"] == before["restarts"] + 1
    assert after["pid"] != before["pid"]


@pytest.mark.spawned
def test_sigterm_while_an_engine_core_is_being_replaced_ends_orderly(alone: Server) -> None:
    """The last of this server: nothing is restarted, nothing is left."""

    async def hurt() -> None:
        await wait_healthy(alone)
        os.kill((await engines_of(alone))[0]["pid"], signal.SIGKILL)
        before = set(psutil.Process(alone.pid).children())
        async with asyncio.timeout(20):
            while not set(psutil.Process(alone.pid).children()) - before:
                await asyncio.sleep(0.05)  # the newcomer is not there yet

    run(hurt())
    os.kill(alone.pid, signal.SIGTERM)
    assert wait_ended(alone, 30) == 0
    assert left_behind(alone) == []
