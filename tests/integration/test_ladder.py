"""Who decides and how, on a real engine: a fallback of `external`, rows of an operator's own, a dry run."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server, log_tail
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.cli.serve import EXIT_USAGE
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import apply, configured
from integration.helpers.endings import failed_start
from integration.helpers.servers import V1_SYNC, Servers, run

pytestmark = [pytest.mark.host, pytest.mark.server]

WAIT_S = 2.0
PROMPT = "Dear doctor, my password is hunter2"
OWN_ROWS = [{"message": "our adapter is gone", "class": "device", "reason": "the adapter needs a new context"}]


def four() -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=60, cache_salt=fresh_salt()) for i in range(4)]


def injected(message: str) -> InjectionSpec:
    return InjectionSpec(phase=Phase.FORWARD, after_steps=20, message=message)


async def through(server: Server, injection: InjectionSpec) -> tuple[list[History], list[dict[str, Any]]]:
    async with Control(server.url, timeout_s=60.0) as control:
        before = await control.last_sequence()
        await control.inject(injection)
        found = await Load(server.url, four()).run()
        return found, await control.wait_recovered(before, timeout_s=90.0)


async def full_texts(server: Server) -> str:
    async with control_client(server.url, timeout_s=30) as client:
        return (await client.get("/fault_tolerance/status", params={"full_texts": "true"})).text


def decisions(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e["decision"] for e in events if e["kind"] == "decision-made"]


def test_a_fallback_climbs_the_ladder_when_nobody_gave_an_instruction(servers: Servers) -> None:
    """An exception is retried and an error of an own row gets its rank a new process, each after the wait."""
    policy = ("--fault-policy", "external", "--external-fallback", "auto", "--engine-recovery-timeout", str(WAIT_S))
    with servers.start(*policy, "--fault-classes", json.dumps(OWN_ROWS), "--enable-fault-injection") as server:
        expected = run(Load(server.url, four()).run())
        for message, action, fault_class in (
            ("injected fault", "retry", "transient"),
            (f"{PROMPT}: our adapter is gone", "restart-workers", "device"),
        ):
            found, events = run(through(server, injected(message)))
            assert compare_runs(expected, found).exact
            assert [d["action"] for d in decisions(events)] == ["await-instruction", action]
            assert decisions(events)[1]["fault_class"] == fault_class
            [recovered] = [e for e in events if e["kind"] == RECOVERED]
            assert recovered["interruption_s"] >= WAIT_S
            [fault] = [e["fault"] for e in events if e["kind"] == FAULT]
            assert PROMPT not in json.dumps(events)
        assert fault["class_reason"] == "the adapter needs a new context"
        assert PROMPT in run(full_texts(server))


def test_a_dry_run_says_what_it_would_do_and_waits_for_an_instruction(servers: Servers) -> None:
    server = servers.shared(V1_SYNC)
    expected = run(Load(server.url, four()).run())
    with configured(server, fault_policy="dry-run", max_retries=10, retry_window=0.001):
        found, events = run(instructed(server))
    assert compare_runs(expected, found).exact
    [decision] = decisions(events)
    assert (decision["action"], decision["would"], decision["policy"]) == ("await-instruction", "retry", "dry-run")
    log = log_tail(server.spec.log, 2000)
    assert "dry run: would retry: exception with state intact; retry 1 of 10" in log
    assert re.search(
        r"\[action=await-instruction would=retry rung=0 class=transient rank=0 policy=dry-run epoch=\d+\]", log
    )


async def instructed(server: Server) -> tuple[list[History], list[dict[str, Any]]]:
    async with Control(server.url) as control, control_client(server.url, timeout_s=60) as client:
        before = await control.last_sequence()
        await control.inject(injected("injected fault"))
        streams = asyncio.create_task(Load(server.url, four()).run())
        async with asyncio.timeout(30):
            while not decisions(await control.events(before)):
                await asyncio.sleep(0.05)
        assert (await apply(client, "retry")).status_code == 200
        return await streams, await control.wait_recovered(before)


def test_a_server_does_not_start_with_a_row_that_could_not_be_used(servers: Servers) -> None:
    bad = json.dumps([*OWN_ROWS, {"message": "(a+)+$", "class": "device"}])
    code, said = failed_start(servers, "--fault-classes", bad)
    assert code == EXIT_USAGE
    assert "fault_classes, row 2 (" in said[-1]
