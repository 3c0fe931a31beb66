"""However often a worker is replaced, those that live on hold no more for it."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.bench.topologies import ONE, TP2, Topology
from holdfast.chaos.control import Control
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.processes import SessionUsage, usage_by_process
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.chaos.victims import ProcessKind, find_victims, kill
from integration.helpers.servers import NO_LIMITS, Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.spawned]

KILLS, FIRST = 20, 3  # what is made once and kept is there after the first few
CALM_S = 1.0  # what is being closed is no leak
BACK_WITHIN_S = 120.0


async def kill_last_worker(server: Server, control: Control) -> None:
    before = await control.last_sequence()
    workers = sorted((one for one in find_victims(server.pid) if one.kind is ProcessKind.WORKER), key=lambda w: w.name)
    kill(workers[-1])
    await Load(server.url, every_feature(fresh_salt(), 10)).run()
    events = await control.wait_recovered(before, timeout_s=BACK_WITHIN_S)
    assert any(event["kind"] == "engine-recovered" for event in events)


@pytest.mark.matrix
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", [ONE, TP2], ids=lambda t: t.name)
def test_many_killed_workers_cost_those_that_live_on_no_file_no_thread_and_no_memory(
    servers: Servers, topology: Topology
) -> None:
    async def scenario(server: Server) -> list[dict[int, SessionUsage]]:
        seen = []
        async with Control(server.url) as control:
            for _ in range(KILLS):
                await kill_last_worker(server, control)
                await asyncio.sleep(CALM_S)
                seen.append(usage_by_process(server.pid))
        return seen

    with servers.of(topology, arguments=NO_LIMITS) as server:
        seen = run(scenario(server))
    survivors = set.intersection(*(set(usage) for usage in seen))
    assert len(survivors) > topology.ranks_per_engine  # the server, its engine core, and the other worker
    for pid in survivors:
        first, last = seen[FIRST][pid], seen[-1][pid]
        told = [(usage[pid].files, usage[pid].threads, usage[pid].shared_segments) for usage in seen]
        print(pid, told)
        assert last.files <= first.files + 3, told
        assert last.threads <= first.threads + 1, told
        assert last.shared_segments <= first.shared_segments, told
