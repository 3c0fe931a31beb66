"""A killed engine core of a lockstep group: its peers stand until another one joins them, and no request is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import psutil
import pytest

from holdfast.bench.topologies import MOE_EP
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.endings import wait_ended
from integration.helpers.engines import engines_of, wait_healthy
from integration.helpers.servers import V1_SYNC, Servers, in_matrix, left_behind, run, served_name
from integration.helpers.streams import IDLE_S, begun

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

TOKENS = 300
Harm = Callable[[Server], Awaitable[None]]


@pytest.fixture(params=[(MOE_EP, V1_SYNC)], ids=served_name)
def group(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.shared_of(*request.param)


@pytest.fixture
def reference(group: Server, servers: Servers) -> list[History]:
    return servers.reference(MOE_EP, V1_SYNC, asked)


def asked(salt: str) -> list[StreamSpec]:
    return every_feature(salt, TOKENS)


def load(server: Server) -> Load:
    return Load(server.url, asked(fresh_salt()))


async def assert_exact_through(server: Server, reference: list[History], harm: Harm) -> None:
    """A load that meets the harm, and one after it, are those of a fault-free run."""
    running = load(server)
    streams = asyncio.create_task(running.run())
    await begun(running)
    await harm(server)
    for observed in (await streams, await load(server).run()):
        verdict = compare_runs(reference, observed)
        assert verdict.exact, verdict.reasons
    await wait_healthy(server)
    async with Control(server.url) as control:
        assert await control.unwell() is None


def killed(*engine_ids: int) -> Harm:
    async def harm(server: Server) -> None:
        engines = await engines_of(server)
        for engine_id in engine_ids:
            os.kill(engines[engine_id]["pid"], signal.SIGKILL)

    return harm


async def restarted_by_hand(server: Server) -> None:
    before = (await engines_of(server))[1]
    body = {"fault_tolerance_instruction": "restart-engine", "fault_tolerance_params": {"engine_id": 1}}
    async with control_client(server.url, timeout_s=300) as client:
        assert (await client.post("/fault_tolerance/apply", json=body)).status_code == 200
    after = (await engines_of(server))[1]
    assert after["pid"] != before["pid"]
    assert after["restarts"] == before["restarts"] + 1


@pytest.mark.parametrize("engine_ids", [in_matrix((1,)), in_matrix((0,)), (0, 1)], ids=["second", "first", "both"])
@pytest.mark.spawned
def test_a_group_goes_on_with_a_new_member_and_changes_no_token(
    group: Server, reference: list[History], engine_ids: tuple[int, ...]
) -> None:
    run(assert_exact_through(group, reference, killed(*engine_ids)))


def test_a_group_that_is_all_new_and_that_everybody_has_left_serves_who_comes_later(
    group: Server, reference: list[History]
) -> None:
    """The host's coordinator and front ends remember a running wave, of which no member knows."""

    async def scenario() -> None:
        leaving = load(group)
        streams = asyncio.create_task(leaving.run())
        await begun(leaving)
        await killed(0, 1)(group)
        streams.cancel()
        await wait_healthy(group)
        await asyncio.sleep(IDLE_S)
        verdict = compare_runs(reference, await load(group).run())
        assert verdict.exact, verdict.reasons

    run(scenario())


@pytest.mark.matrix
@pytest.mark.spawned
def test_sigterm_while_a_member_of_the_group_is_being_replaced_ends_orderly(servers: Servers) -> None:
    with servers.of(MOE_EP) as server:

        async def hurt() -> None:
            before = set(psutil.Process(server.pid).children())
            await killed(1)(server)
            async with asyncio.timeout(20):
                while not set(psutil.Process(server.pid).children()) - before:
                    await asyncio.sleep(0.05)  # the newcomer is not there yet

        run(hurt())
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, 30) == 0
    assert left_behind(server) == []


def test_a_member_is_restarted_by_the_operator_under_load_and_changes_no_token(
    group: Server, reference: list[History]
) -> None:
    run(assert_exact_through(group, reference, restarted_by_hand))
