"""Requests that arrive, are cancelled or disconnect while an engine stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import MODEL_NAME, Load
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import Servers, run, state
from integration.helpers.streams import wait_without_requests

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.timed]

FAULT = InjectionSpec(phase=Phase.FORWARD, after_steps=25)


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[Server]:
    """Waits for instructions, so that a test decides how long the pause lasts."""
    arguments = ("--enable-fault-injection", "--fault-policy", "external", "--max-held-requests", "4")
    with servers.start(*arguments) as started:
        yield started


async def pause(control: Control, client: httpx.AsyncClient) -> None:
    """Wait until the armed fault has paused the engine."""
    async with asyncio.timeout(30):
        while (await state(client)) != "paused":
            await asyncio.sleep(0.02)


async def retry(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/fault_tolerance/apply", json={"fault_tolerance_instruction": "retry"})


async def disconnect_while_paused(client: httpx.AsyncClient) -> None:
    """Open a stream, wait for it to be held, and vanish."""
    body = {"model": MODEL_NAME, "prompt": "gone soon", "max_tokens": 50, "stream": True}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await client.post("/v1/completions", json=body)


async def _scenario(server: Server) -> None:
    expected = await Load(server.url, every_feature(fresh_salt())).run()
    async with Control(server.url) as control, control_client(server.url, timeout_s=30) as client:
        await control.inject(FAULT)
        caught = Load(server.url, every_feature(fresh_salt()))
        first = asyncio.create_task(caught.run())
        await pause(control, client)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/fault_tolerance/ready")).status_code == 503
        arrived = Load(server.url, every_feature(fresh_salt())[:2])
        second = asyncio.create_task(arrived.run())
        await disconnect_while_paused(client)
        answer = await retry(client)
        assert (answer.status_code, answer.json()) == (200, {"message": "Instruction executed successfully."})
        await asyncio.gather(first, second)
        assert compare_runs(expected, caught.histories).exact, compare_runs(expected, caught.histories).reasons
        late = compare_runs(expected[:2], arrived.histories)
        assert late.exact, late.reasons
        await wait_without_requests(client, 20)  # the request of the client that vanished is ended


def test_old_and_new_requests_are_served_after_the_pause_and_the_vanished_one_is_dropped(server: Server) -> None:
    run(_scenario(server))


async def _cancelled(server: Server) -> None:
    async with Control(server.url) as control, control_client(server.url, timeout_s=30) as client:
        expected = await Load(server.url, every_feature(fresh_salt())[:3]).run()
        await control.inject(FAULT)
        staying = Load(server.url, every_feature(fresh_salt())[:3])
        leaving = Load(server.url, every_feature(fresh_salt())[3:])
        stay, leave = asyncio.create_task(staying.run()), asyncio.create_task(leaving.run())
        await pause(control, client)
        leave.cancel()
        await asyncio.gather(leave, return_exceptions=True)
        assert (await retry(client)).status_code == 200
        await stay
        verdict = compare_runs(expected, staying.histories)
        assert verdict.exact, verdict.reasons
        assert await control.unwell() is None


def test_streams_cancelled_during_the_pause_do_not_disturb_those_that_stay(server: Server) -> None:
    run(_cancelled(server))


async def _held_beyond_the_bound(server: Server) -> list[httpx.Response | BaseException]:
    body = {"model": MODEL_NAME, "prompt": "many", "max_tokens": 3}
    async with Control(server.url) as control, control_client(server.url, timeout_s=30) as client:
        await control.inject(InjectionSpec(phase=Phase.STEP_START))
        victim = asyncio.create_task(client.post("/v1/completions", json=body))
        await pause(control, client)
        others = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(7)]
        done, _ = await asyncio.wait(others, timeout=2)
        assert (await retry(client)).status_code == 200
        answers = await asyncio.gather(victim, *others, return_exceptions=True)
        assert len(done) == 3
        return answers


def test_new_requests_wait_up_to_a_bound_and_are_then_told_to_come_back(server: Server) -> None:
    answers = run(_held_beyond_the_bound(server))
    refused = [a for a in answers if isinstance(a, httpx.Response) and a.status_code == 503]
    assert len(refused) == 3
    assert all("Retry-After" in r.headers for r in refused)
    assert [a.status_code for a in answers if a not in refused] == [200] * 5


async def _conflicts(server: Server) -> None:
    async with Control(server.url) as control, control_client(server.url, timeout_s=30) as client:
        refused = await retry(client)
        assert refused.status_code == 409
        assert refused.json()["error"]["state"] == "healthy"
        await control.inject(InjectionSpec(phase=Phase.STEP_START))
        body = {"model": MODEL_NAME, "prompt": "x", "max_tokens": 3}
        victim = asyncio.create_task(client.post("/v1/completions", json=body))
        await pause(control, client)
        unknown = {"instruction": "retry", "params": {"engine_id": 7}}
        assert (await client.post("/fault_tolerance/apply", json=unknown)).status_code == 404
        answers = await asyncio.gather(*(retry(client) for _ in range(4)))
        assert sorted(a.status_code for a in answers) == [200, 409, 409, 409]
        assert (await victim).status_code == 200


def test_commands_that_make_no_sense_or_come_twice_are_refused_with_the_state(server: Server) -> None:
    run(_conflicts(server))
