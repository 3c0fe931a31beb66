"""The server's `/metrics` through faults: the host's counters rise as without a fault, Holdfast's tell the cost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

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
from integration.helpers.processes import api_servers, wait_back, workers_of
from integration.helpers.prometheus import Prometheus
from integration.helpers.servers import V1_SYNC, Servers, in_matrix, run
from integration.helpers.streams import begun, wait_without_requests

pytestmark = [pytest.mark.host, pytest.mark.server]

COUNTERS = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
)
TOKENS = 200
RENEWED_S = 1.2  # what has no event is renewed each second

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


# ---- Holdfast's own metrics


def samples(metrics: str) -> dict[str, float]:
    lines = (line for line in metrics.splitlines() if line.startswith(("holdfast_", "vllm:engine_healthy")))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


RETRIED = 'holdfast_recoveries_total{action="retry",outcome="succeeded"}'
REPLACED = 'holdfast_recoveries_total{action="restart-engine",outcome="succeeded"}'
NEW_WORKER = 'holdfast_recoveries_total{action="restart-workers",outcome="succeeded"}'
REWOUND, MOVED = (f'holdfast_requests_total{{outcome="{outcome}"}}' for outcome in ("rewound", "moved"))
INTERRUPTED, WAITED = "holdfast_interruption_seconds_count", "holdfast_interruption_seconds_sum"


def difference(before: dict[str, float], after: dict[str, float], *names: str) -> list[float]:
    return [after[name] - before.get(name, 0.0) for name in names]


async def own(server: Server) -> dict[str, float]:
    """Holdfast's metrics, after what is renewed by time has been renewed."""
    await asyncio.sleep(RENEWED_S)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        return samples((await client.get("/metrics")).text)


async def told_through(server: Server, specs: list[StreamSpec], hurt: Hurt) -> dict[str, float]:
    """What the host counts of a load that is hurt in its middle; Holdfast tells what that cost."""
    before = await own(server)
    counted = await counted_through(server, specs, hurt)
    after = await own(server)
    repaired, touched, least = TOLD[hurt]
    [recoveries, requests, interrupted, waited_s] = difference(before, after, repaired, touched, INTERRUPTED, WAITED)
    assert recoveries == 1
    assert requests == interrupted >= least
    assert 0 < waited_s / interrupted < 60
    assert after['holdfast_recovery_phase_seconds_count{phase="first-token"}'] >= 1
    assert after['vllm:engine_healthy{engine="0"}'] == 1
    assert after['holdfast_engine_state{engine="0",state="healthy"}'] == 1
    assert after['holdfast_engine_state{engine="0",state="restarting"}'] == 0
    assert after["holdfast_owner_up"] == 1
    assert [value for name, value in after.items() if name.startswith("holdfast_build_info")] == [1]
    return counted


# What a repair is called, what it does to the requests, and to how many at least.
TOLD = {
    raise_in_a_step: (RETRIED, REWOUND, 4),
    kill_worker: (NEW_WORKER, REWOUND, 4),
    kill_engine_core: (REPLACED, MOVED, 4),
}
_expected: dict[str, dict[str, float]] = {}


@pytest.mark.parametrize("hurt", [raise_in_a_step, in_matrix(kill_worker), kill_engine_core])
def test_the_counters_of_the_host_rise_as_without_a_fault_and_holdfast_tells_the_cost(
    servers: Servers, hurt: Hurt
) -> None:
    server = servers.shared(V1_SYNC)
    if server.url not in _expected:
        _expected[server.url] = run(counted_through(server, eight(fresh_salt())))
    assert _expected[server.url]["vllm:generation_tokens_total"] == 8 * TOKENS
    assert run(told_through(server, eight(fresh_salt()), hurt)) == _expected[server.url]


@pytest.mark.matrix
def test_several_api_servers_count_together_and_a_lost_one_keeps_its_counts(servers: Servers) -> None:
    server = servers.shared_of(DP2)
    run(Load(server.url, spread_eight(fresh_salt())).run())  # several API servers tell nothing before the first request
    expected = run(counted_through(server, spread_eight(fresh_salt())))
    for hurt in (raise_in_a_step, kill_engine_core):
        assert run(told_through(server, spread_eight(fresh_salt()), hurt)) == expected, hurt.__name__
    before = run(own(server))

    async def kill_api_server() -> None:
        async with Control(server.url) as control:
            after = await control.last_sequence()
        os.kill(api_servers(server)[0], signal.SIGKILL)
        await wait_back(server, after)

    run(kill_api_server())
    after = run(own(server))
    assert difference(before, after, REWOUND, MOVED, INTERRUPTED, RETRIED, REPLACED) == [0, 0, 0, 0, 0]
    name = 'holdfast_recoveries_total{action="restart-process",outcome="succeeded"}'
    assert difference(before, after, name) == [1]


def test_a_real_prometheus_sees_a_fault_of_a_server(servers: Servers, tmp_path: Path) -> None:
    server = servers.shared(V1_SYNC)
    with Prometheus(server.url, tmp_path) as prometheus:
        before = prometheus.await_value(RETRIED, lambda value: value >= 0)
        run(counted_through(server, eight(fresh_salt()), raise_in_a_step))
        prometheus.await_value(RETRIED, lambda value: value == before + 1)
        prometheus.await_value('holdfast_engine_state{state="healthy"}', lambda value: value == 1)
        assert prometheus.value("up") == 1
        prometheus.await_value(INTERRUPTED, lambda value: value >= 8)
