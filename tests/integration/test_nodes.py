"""One model over two nodes: every stream goes on through faults of either node, with the tokens of a fault-free run.

The nodes are namespaces of this machine. Each server takes all faults of its test in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from holdfast.chaos.control import LOST, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import MANY_RETRIES, Servers, run
from integration.helpers.streams import assert_exact, begun
from support.nodes import Nodes, needs_nodes, nodes
from support.nodes_server import ServerOverNodes

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.matrix, pytest.mark.timeout(900)]

TP2 = ("--tensor-parallel-size", "2")
PP2 = ("--pipeline-parallel-size", "2")
AWAY_S = 4.0  # long enough for a node to be lost
RECOVERED_WITHIN_S = 120.0

Act = Callable[[ServerOverNodes], Awaitable[None]]


@pytest.fixture
def two() -> Iterator[Nodes]:
    needs_nodes()
    with nodes() as made:
        yield made


def over_nodes(servers: Servers, two: Nodes, arguments: tuple[str, ...]) -> ServerOverNodes:
    spec = servers.spec("--enable-fault-injection", *MANY_RETRIES)
    return ServerOverNodes(spec, two, arguments)


def mixed_load(tokens: int = 120) -> list[StreamSpec]:
    salt = fresh_salt()
    return [
        StreamSpec("greedy", "The keeper", max_tokens=tokens, cache_salt=salt),
        StreamSpec("seeded", "A storm crosses", max_tokens=tokens, cache_salt=salt, temperature=0.9, seed=7),
        StreamSpec("pair", "Every word at dawn", max_tokens=tokens, cache_salt=salt, temperature=0.8, seed=5, n=2),
    ]


async def through(server: ServerOverNodes, act: Act) -> list[History]:
    """Run a load through a fault that happens once every stream has begun."""
    async with Control(server.url) as control:
        before = await control.last_sequence()
        load = Load(server.url, mixed_load())
        running = asyncio.create_task(load.run())
        await begun(load)
        await act(server)
        await control.wait_recovered(before, faults=1, timeout_s=RECOVERED_WITHIN_S)
        histories = await running
        assert await control.unwell() is None
    return histories


def raising(rank: int) -> Act:
    async def act(server: ServerOverNodes) -> None:
        async with Control(server.url) as control:
            await control.inject(InjectionSpec(phase=Phase.FORWARD, rank=rank))

    return act


def killing(node: int) -> Act:
    async def act(server: ServerOverNodes) -> None:
        server.worker(node).kill()

    return act


async def freezing(server: ServerOverNodes) -> None:
    server.nodes[1].freeze()
    await asyncio.sleep(AWAY_S)
    server.nodes[1].thaw()


async def cutting(server: ServerOverNodes) -> None:
    server.nodes.cut()
    await asyncio.sleep(AWAY_S)
    server.nodes.heal()


async def restarting(server: ServerOverNodes) -> None:
    server.headless_process().kill()
    server.start_headless()


async def cutting_power(server: ServerOverNodes) -> None:
    server.nodes.cut_power(1)
    await asyncio.sleep(AWAY_S)
    server.nodes.heal()
    server.start_headless()


def assert_exact_through(server: ServerOverNodes, *acts: Act) -> None:
    expected = run(Load(server.url, mixed_load()).run())
    for act in acts:
        assert_exact(expected, run(through(server, act)))
    assert_exact(expected, run(Load(server.url, mixed_load()).run()))


def test_tensor_parallel_ranks_of_two_nodes_survive_exceptions_and_kills_on_either(
    servers: Servers, two: Nodes
) -> None:
    with over_nodes(servers, two, TP2) as server:
        assert_exact_through(server, raising(0), raising(1), killing(1), killing(0), raising(1))


def test_a_node_that_was_frozen_or_cut_off_goes_on_with_its_processes(servers: Servers, two: Nodes) -> None:
    with over_nodes(servers, two, TP2) as server:
        before = server.worker(1).pid
        assert_exact_through(server, freezing, cutting)
        assert server.worker(1).pid == before


def test_a_node_that_is_started_again_gets_its_rank(servers: Servers, two: Nodes) -> None:
    with over_nodes(servers, two, TP2) as server:
        assert_exact_through(server, restarting, cutting_power)


def test_a_worker_that_dies_while_nothing_runs_is_noticed_and_replaced(servers: Servers, two: Nodes) -> None:
    async def losing(server: ServerOverNodes) -> list[dict[str, object]]:
        async with Control(server.url) as control:
            before = await control.last_sequence()
            server.worker(1).kill()
            return await control.wait_recovered(before, faults=1, timeout_s=RECOVERED_WITHIN_S)

    with over_nodes(servers, two, TP2) as server:
        assert [e for e in run(losing(server)) if e["kind"] == LOST] == []  # no engine core was
        assert_exact_through(server, raising(1))


def test_pipeline_stages_on_two_nodes_survive_exceptions_and_a_kill(servers: Servers, two: Nodes) -> None:
    with over_nodes(servers, two, PP2) as server:
        assert_exact_through(server, raising(0), raising(1), killing(1), raising(1))


def test_an_agent_ends_with_its_engine_core(servers: Servers, two: Nodes, tmp_path: Path) -> None:
    with over_nodes(servers, two, TP2) as server:
        two[0].kill()
        assert server.headless is not None
        assert server.headless.wait(30) != 0
        assert [p for p in two[1].processes() if "Worker" in " ".join(p.cmdline())] == []
