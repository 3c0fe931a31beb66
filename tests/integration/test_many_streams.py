"""Five hundred open streams, and an engine core killed among them: every one goes on, and the journal lets all go."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.bench.loads import PROMPTS
from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.processes import usage_by_process
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.engines import kill_in_mid_stream, wait_healthy
from integration.helpers.processes import api_servers
from integration.helpers.servers import Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.matrix]

STREAMS = 500
TOKENS = 40
TIMEOUT_S = 400.0
MAX_GROWTH_BYTES = 64 * 2**20  # of an API server that has served them all; what 500 streams keep open is far less


def load(server: Server) -> Load:
    salt = fresh_salt()
    specs = [
        StreamSpec(f"s{i}", f"{PROMPTS[i % 8]} {i}", max_tokens=TOKENS, cache_salt=salt, data_parallel_rank=i % 2)
        for i in range(STREAMS)
    ]
    return Load(server.url, specs, timeout_s=TIMEOUT_S)


def resident(server: Server) -> int:
    usage = usage_by_process(server.pid)
    return sum(usage[pid].resident_bytes for pid in api_servers(server))


@pytest.mark.timeout(900)
def test_five_hundred_streams_lose_nothing_with_an_engine_core(servers: Servers) -> None:
    async def scenario(server: Server) -> None:
        reference = await load(server).run()
        before = resident(server)
        running = load(server)
        streams: asyncio.Task[list[History]] = asyncio.create_task(running.run())
        await kill_in_mid_stream(server, running, 1)
        peak = 0
        while not streams.done():
            peak = max(peak, resident(server))
            await asyncio.wait({streams}, timeout=0.5)
        verdict = compare_runs(reference, await streams)
        assert verdict.exact, verdict.reasons[:5]
        await wait_healthy(server)
        grown = resident(server) - before
        print(f"API servers: {before / 2**20:.0f} MiB before, {peak / 2**20:.0f} at most, {grown / 2**20:+.0f} after")
        assert peak - before < MAX_GROWTH_BYTES
        verdict = compare_runs(reference, await load(server).run())
        assert verdict.exact, verdict.reasons[:5]

    with servers.of(DP2) as server:
        run(scenario(server))
