"""A killed engine core is replaced over its living workers: the same processes go on, every token exact."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from holdfast.bench.topologies import ONE, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.chaos.victims import ProcessKind, find_victims
from integration.helpers.engines import engines_of, for_one, kill_in_mid_stream, load, wait_replaced
from integration.helpers.servers import V1_ASYNC, V1_SYNC, Kind, Servers, in_matrix, left_behind, run

pytestmark = [pytest.mark.host, pytest.mark.server]

WAITS = "the engine core has died; waiting for the next one"
WAIT_S = 10.0
ARGUMENTS = ("--adopt-workers", "--max-engine-restarts", "100")


def workers(server: Server) -> list[int]:
    return [victim.pid for victim in find_victims(server.pid) if victim.kind is ProcessKind.WORKER]


def await_waiting(server: Server, count: int) -> None:
    """Wait until workers have said so many times that they wait for an engine core."""
    deadline = time.monotonic() + WAIT_S
    while server.spec.log.read_text(errors="replace").count(WAITS) < count:
        assert time.monotonic() < deadline, "no worker waits for an engine core"
        time.sleep(0.01)


async def killed_run(server: Server, *, with_worker: bool = False) -> Load:
    """Return a load in the middle of which the engine core was killed."""
    running = load(server, 1)
    streams = asyncio.create_task(running.run())
    pid = (await engines_of(server))[0]["pid"]
    if with_worker:
        os.kill(workers(server)[0], signal.SIGKILL)
    await kill_in_mid_stream(server, running, 0)
    await streams
    await wait_replaced(server, 0, pid)
    return running


@pytest.mark.parametrize(
    ("topology", "kind"),
    [
        (ONE, V1_SYNC),
        in_matrix(ONE, V1_ASYNC),
        in_matrix(TP2, V1_SYNC),
        in_matrix(TP2, V1_ASYNC),
    ],
    ids=lambda value: value.name,
)
def test_workers_outlive_engine_cores(servers: Servers, topology: Topology, kind: Kind) -> None:
    """Two kills in a row, then one as the server is told to end: the worker that waits ends too."""
    with servers.of(topology, kind, ARGUMENTS) as server:
        reference = run(Load(server.url, for_one("reference")).run())
        before = workers(server)
        for _ in range(2):
            verdict = compare_runs(reference, run(killed_run(server)).histories)
            assert verdict.exact, verdict.reasons
            assert workers(server) == before
        [engine] = run(engines_of(server))
        deaths = server.spec.log.read_text(errors="replace").count(WAITS)
        os.kill(engine["pid"], signal.SIGKILL)
        await_waiting(server, deaths + topology.ranks)
        assert server.stop() == 0
        assert left_behind(server) == []


@pytest.mark.matrix
def test_an_engine_core_and_a_worker_that_die_together_are_both_replaced(servers: Servers) -> None:
    with servers.of(TP2, V1_SYNC, ARGUMENTS) as server:
        reference = run(Load(server.url, for_one("reference")).run())
        before = workers(server)
        verdict = compare_runs(reference, run(killed_run(server, with_worker=True)).histories)
        assert verdict.exact, verdict.reasons
        assert not set(before) & set(workers(server))
