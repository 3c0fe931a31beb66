"""The server's `/metrics` through faults: the host's own counters rise as without a fault."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import httpx
import pytest

from holdfast.bench.topologies import DP2
from holdfast.chaos.control import Control
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.engines import engines_of, spread, wait_healthy, wait_replaced
from integration.helpers.processes import workers_of
from integration.helpers.servers import V1_SYNC, Servers, run
from integration.helpers.streams import begun, wait_without_requests

pytestmark = [pytest.mark.host, pytest.mark.server]

COUNTERS = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
)
TOKENS = 300

Hurt = Callable[[Server], Awaitable[None]]


def eight(salt: str) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=TOKENS, cache_salt=salt) for i in range(8)]


def spread_eight(salt: str) -> list[StreamSpec]:
    return spread(eight(salt), 2)


def totals(metrics: str) -> dict[str, float]:
    """The host's counters, each summed over its labels."""
    samples = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith(COUNTERS)]
    return {name: sum(float(value) for sample, value in samples if sample.startswith(f"{name}{{")) for name in COUNTERS}


async def scraped(server: Server) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        await wait_without_requests(client)
        return totals((await client.get("/metrics")).text)


async def counted_through(server: Server, specs: list[StreamSpec], hurt: Hurt | None = None) -> dict[str, float]:
    """What the host counts of a load, hurt in its middle."""
    before = await scraped(server)
    running = Load(server.url, specs)
    streams = asyncio.create_task(running.run())
    await begun(running)
    if hurt is not None:
        await hurt(server)
    await streams
    await wait_healthy(server)
    after = await scraped(server)
    return {name: after[name] - before[name] for name in COUNTERS}


async def raise_in_a_step(server: Server) -> None:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        await control.inject(InjectionSpec(phase=Phase.FORWARD))
        await control.wait_recovered(before, faults=1)


async def kill_worker(server: Server) -> None:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        os.kill(workers_of(server)[0, 0], signal.SIGKILL)
        await control.wait_recovered(before, faults=1, timeout_s=90)


async def kill_engine_core(server: Server) -> None:
    pid = (await engines_of(server))[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    await wait_replaced(server, 0, pid)


def test_the_counters_of_the_host_rise_as_without_a_fault(servers: Servers) -> None:
    server = servers.shared(V1_SYNC)
    expected = run(counted_through(server, eight(fresh_salt())))
    assert expected["vllm:generation_tokens_total"] == 8 * TOKENS
    for hurt in (raise_in_a_step, kill_worker, kill_engine_core):
        assert run(counted_through(server, eight(fresh_salt()), hurt)) == expected, hurt.__name__


def test_the_counters_of_several_api_servers_rise_as_without_a_fault(servers: Servers) -> None:
    server = servers.shared_of(DP2)
    run(Load(server.url, spread_eight(fresh_salt())).run())  # several API servers tell nothing before the first request
    expected = run(counted_through(server, spread_eight(fresh_salt())))
    assert expected["vllm:generation_tokens_total"] == 8 * TOKENS
    assert run(counted_through(server, spread_eight(fresh_salt()), kill_engine_core)) == expected
