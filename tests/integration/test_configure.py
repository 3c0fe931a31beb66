"""Settings changed while a real server runs: a budget, the policy, and a value that is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import DECIDED, RECOVERED, Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import apply, states
from integration.helpers.servers import V1_SYNC, Servers, run, well

pytestmark = [pytest.mark.host, pytest.mark.server]

SETTLES_S = 1.0


def four() -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The pilot of boat {i}", max_tokens=60, cache_salt=fresh_salt()) for i in range(4)]


async def settings_of(client: httpx.AsyncClient) -> dict[str, Any]:
    settings: dict[str, Any] = (await client.get("/fault_tolerance/status")).json()["settings"]
    return settings


async def configure(client: httpx.AsyncClient, **settings: object) -> None:
    answer = await apply(client, "configure", **settings)
    assert answer.status_code == 200, answer.text


def client_of(server: Server) -> httpx.AsyncClient:
    return control_client(server.url, timeout_s=60)


async def decision_with(server: Server, **settings: object) -> dict[str, Any]:
    """Return the first decision about a fault under changed settings; the old settings are restored."""
    async with client_of(server) as client, Control(server.url, timeout_s=60) as control:
        before = await settings_of(client)
        await configure(client, **settings)
        after = await control.last_sequence()
        await control.inject(InjectionSpec(phase=Phase.FORWARD, after_steps=5))
        await Load(server.url, four()).run()
        events = await control.wait_recovered(after, timeout_s=90)
        await configure(client, **{name: before[name] for name in settings})
        assert await settings_of(client) == before
        decisions: list[dict[str, Any]] = [e["decision"] for e in events if e["kind"] == DECIDED]
        return decisions[0]


def test_a_budget_is_changed_and_changed_back(servers: Servers) -> None:
    """Without retries a fault gets its rank a new process; with the budget back a fault is retried."""
    server = servers.shared(V1_SYNC)
    without = run(decision_with(server, max_retries=0))
    assert without["action"] == "restart-workers"
    again = run(decision_with(server, max_retries=7, retry_window=0.001))
    assert (again["action"], again["tries"], again["limit"]) == ("retry", 1, 7)
    assert run(well(server)) is None


async def paused_then_released(server: Server) -> tuple[list[History], list[dict[str, Any]]]:
    async with client_of(server) as client, Control(server.url) as control:
        await configure(client, fault_policy="external", engine_recovery_timeout=60)
        after = await control.last_sequence()
        await control.inject(InjectionSpec(phase=Phase.FORWARD, after_steps=10))
        streams = asyncio.create_task(Load(server.url, four()).run())
        async with asyncio.timeout(30):
            while not [e for e in await control.events(after) if e["kind"] == DECIDED]:
                await asyncio.sleep(0.05)
        await asyncio.sleep(SETTLES_S)
        assert set(await states(client)) == {"paused"}
        await configure(client, fault_policy="auto", engine_recovery_timeout=120)
        return await streams, await control.wait_recovered(after)


def test_a_group_that_waits_under_external_goes_on_once_the_policy_is_auto(servers: Servers) -> None:
    server = servers.shared(V1_SYNC)
    expected = run(Load(server.url, four()).run())
    found, events = run(paused_then_released(server))
    assert compare_runs(expected, found).exact
    assert [e["decision"]["action"] for e in events if e["kind"] == DECIDED] == ["await-instruction", "retry"]
    [configured] = [e for e in events if e["kind"] == "configured"]
    assert {"name": "fault_policy", "old": "external", "new": "auto"} in configured["changes"]
    [recovered] = [e for e in events if e["kind"] == RECOVERED]
    assert recovered["interruption_s"] >= SETTLES_S
    assert run(well(server)) is None


async def refused(server: Server, **settings: object) -> dict[str, Any]:
    async with client_of(server) as client, Control(server.url) as control:
        before, sequence = await settings_of(client), await control.last_sequence()
        answer = await apply(client, "configure", **settings)
        assert answer.status_code == 400
        assert (await settings_of(client), await control.last_sequence()) == (before, sequence)
        error: dict[str, Any] = answer.json()["error"]
        return error


def test_a_bad_value_is_refused_and_changes_nothing(servers: Servers) -> None:
    server = servers.shared(V1_SYNC)
    assert "`$.max_retries`" in run(refused(server, drain_timeout=3, max_retries=-1))["message"]
    assert run(refused(server, max_retry=1))["hint"] == "did you mean 'max_retries'?"
    fixed = run(refused(server, check_logits=True))
    assert "check_logits is fixed at the start of the server" in fixed["message"]
    assert "max_retries" in fixed["hint"]
