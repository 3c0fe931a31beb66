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


# ---- Holdfast's own metrics


def samples(metrics: str) -> dict[str, float]:
    lines = (line for line in metrics.splitlines() if line.startswith(("holdfast_", "vllm:engine_healthy")))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


RETRIED = 'holdfast_recoveries_total{action="retry",outcome="succeeded"}'
REPLACED = 'holdfast_recoveries_total{action="restart-engine",outcome="succeeded"}'
REWOUND, MOVED = (f'holdfast_requests_total{{outcome="{outcome}"}}' for outcome in ("rewound", "moved"))
INTERRUPTED, WAITED = "holdfast_interruption_seconds_count", "holdfast_interruption_seconds_sum"


def difference(before: dict[str, float], after: dict[str, float], *names: str) -> list[float]:
    return [after[name] - before.get(name, 0.0) for name in names]


async def own(server: Server) -> dict[str, float]:
    """Holdfast's metrics, after what is renewed by time has been renewed."""
    await asyncio.sleep(RENEWED_S)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        return samples((await client.get("/metrics")).text)


def assert_told(server: Server, specs: Callable[[str], list[StreamSpec]]) -> None:
    """An exception rewinds and interrupts every stream; a killed engine core moves those that it had."""
    before = run(own(server))
    run(counted_through(server, specs(fresh_salt()), raise_in_a_step))
    after = run(own(server))
    assert difference(before, after, RETRIED) == [1]
    [rewound, interrupted, waited_s] = difference(before, after, REWOUND, INTERRUPTED, WAITED)
    assert rewound == interrupted >= 4
    assert 0 < waited_s / interrupted < 5
    assert after['holdfast_recovery_phase_seconds_count{phase="first-token"}'] >= 1
    run(counted_through(server, specs(fresh_salt()), kill_engine_core))
    later = run(own(server))
    assert difference(after, later, REPLACED) == [1]
    [moved, interrupted] = difference(after, later, MOVED, INTERRUPTED)
    assert moved == interrupted >= 4
    assert later['vllm:engine_healthy{engine="0"}'] == 1
    assert later['holdfast_engine_state{engine="0",state="healthy"}'] == 1
    assert later['holdfast_engine_state{engine="0",state="restarting"}'] == 0
    assert later["holdfast_owner_up"] == 1
    assert [value for name, value in later.items() if name.startswith("holdfast_build_info")] == [1]


def test_holdfast_tells_what_faults_cost(servers: Servers) -> None:
    assert_told(servers.shared(V1_SYNC), eight)


def test_several_api_servers_tell_what_faults_cost_together_and_a_lost_one_keeps_its_counts(servers: Servers) -> None:
    server = servers.shared_of(DP2)
    assert_told(server, spread_eight)
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
        before = prometheus.await_value(f"{RETRIED}", lambda value: value >= 0)
        run(counted_through(server, eight(fresh_salt()), raise_in_a_step))
        prometheus.await_value(RETRIED, lambda value: value == before + 1)
        prometheus.await_value('holdfast_engine_state{state="healthy"}', lambda value: value == 1)
        assert prometheus.value("up") == 1
        assert prometheus.value(f"max_over_time({INTERRUPTED}[1m])") >= 8
