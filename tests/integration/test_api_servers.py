"""Several API servers, the default with data parallelism: any of them tells the truth and takes instructions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import apply, states
from integration.helpers.processes import ASKS, agreed_by_all, api_servers
from integration.helpers.servers import Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server]

SERVERS = 3


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[Server]:
    with servers.of(DP2, arguments=("--api-server-count", str(SERVERS))) as started:
        yield started


def test_every_api_server_is_started_and_serves(server: Server) -> None:
    assert len(api_servers(server)) == SERVERS
    histories = run(Load(server.url, every_feature(fresh_salt())).run())
    assert not [h.error for h in histories if h.error]


def test_status_and_events_are_the_same_on_every_api_server(server: Server) -> None:
    async def scenario() -> None:
        async with Control(server.url) as control:
            before = await control.last_sequence()
            await control.inject(InjectionSpec(phase=Phase.FORWARD, engine_id=1, after_steps=5))
            await Load(server.url, every_feature(fresh_salt())).run()
            await control.wait_recovered(before)
        for path in ("/fault_tolerance/status", "/fault_tolerance/events"):
            assert {a.status_code for a in await agreed_by_all(server, path)} == {200}

    run(scenario())


def test_an_instruction_may_land_on_any_api_server(server: Server) -> None:
    async def scenario() -> None:
        for _ in range(ASKS // 2):  # each on a connection of its own
            async with control_client(server.url, timeout_s=30) as client:
                assert (await apply(client, "pause")).status_code == 200
            async with control_client(server.url, timeout_s=30) as client:
                assert (await apply(client, "resume")).status_code == 200
            async with control_client(server.url, timeout_s=30) as client:
                assert (await apply(client, "resume")).status_code == 409
        events = (await agreed_by_all(server, "/fault_tolerance/events"))[-1].json()["events"]
        orders = [event["given_by"] for event in events if event["kind"] == "pause-ordered" and "given_by" in event]
        assert {order["address"] for order in orders} == {"127.0.0.1"}
        assert len(orders) >= ASKS // 2
        assert len({event["instance_id"] for event in events}) == 1

    run(scenario())


def test_streams_of_every_api_server_go_on_through_a_fault(server: Server) -> None:
    async def scenario(faulted: bool) -> list[History]:
        async with Control(server.url) as control:
            before = await control.last_sequence()
            if faulted:
                await control.inject(InjectionSpec(phase=Phase.FORWARD, engine_id=0, after_steps=20))
                await control.inject(InjectionSpec(phase=Phase.STEP_END, engine_id=1, after_steps=40))
            loads = [Load(server.url, every_feature(fresh_salt())) for _ in range(3)]
            found = await asyncio.gather(*(load.run() for load in loads))
            if faulted:
                await control.wait_recovered(before, faults=2)
            return [h for histories in found for h in histories]

    verdict = compare_runs(run(scenario(False)), run(scenario(True)))
    assert verdict.exact, verdict.reasons


def is_paused(answer: httpx.Response) -> bool:
    return [engine["state"] for engine in answer.json()["engines"]] == ["paused", "healthy"]


def test_new_requests_go_around_a_paused_engine(server: Server) -> None:
    async def scenario() -> list[History]:
        async with control_client(server.url, timeout_s=30) as client:
            assert (await apply(client, "pause", engine_id=0)).status_code == 200
            await agreed_by_all(server, "/fault_tolerance/status", is_paused)
            try:
                return await Load(server.url, every_feature(fresh_salt()), timeout_s=30).run()
            finally:
                assert await states(client) == ["paused", "healthy"]
                assert (await apply(client, "resume")).status_code == 200

    assert not [h.error for h in run(scenario()) if h.error]
