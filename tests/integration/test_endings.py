"""When nothing helps the instance ends: bounded, non-zero, with a last line that says why."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from holdfast.chaos.control import Control, control_client
from holdfast.chaos.server import Server, log_tail
from holdfast.chaos.victims import ProcessKind, find_victims
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.commands import configured
from integration.helpers.endings import BODY, EXIT_DEFEATED, NO_RESTARTS, hurt, last_line, wait_ended
from integration.helpers.servers import V1_ASYNC, V1_SYNC, Kind, Servers, in_matrix, left_behind, run, state, well

pytestmark = [pytest.mark.host, pytest.mark.server]

PROMPT = "Dear doctor, my password is hunter2"


@pytest.mark.parametrize("kind", [in_matrix(V1_SYNC), V1_ASYNC], ids=lambda k: k.name)
def test_a_fault_that_never_goes_away_ends_the_instance_after_the_retries(
    servers: Servers, kind: Kind, tmp_path: Path
) -> None:
    arguments = ("--enable-fault-injection", "--max-retries", "3", "--retry-window", "30", *NO_RESTARTS)
    with servers.start(*arguments, "--full-texts-file", str(tmp_path / "texts"), kind=kind) as server:
        answer = run(hurt(server, InjectionSpec(phase=Phase.FORWARD, times=1000, message=PROMPT)))
        assert isinstance(answer, httpx.HTTPError) or answer.status_code == 500
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert "3 retries within 30 s did not last" in last_line(server)
        assert "InjectedFault in engine 0, rank 0 at forward: <text withheld>" in last_line(server)
        assert PROMPT not in server.spec.log.read_text(errors="replace")  # stacks of the host are there, too
        assert PROMPT in (tmp_path / "texts").read_text()
        assert left_behind(server) == []


def test_a_fault_inside_every_recovery_ends_the_instance(servers: Servers) -> None:
    with servers.start("--enable-fault-injection", "--max-retries", "3", *NO_RESTARTS) as server:
        run(hurt(server, InjectionSpec(phase=Phase.RECOVERY, times=1000), InjectionSpec(phase=Phase.FORWARD)))
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert "holdfast: instance ended: 3 retries" in last_line(server)


def only(server: Server, kind: ProcessKind) -> int:
    """The process id of the one process of that kind."""
    [found] = [victim.pid for victim in find_victims(server.pid) if victim.kind is kind]
    return found


async def replace_the_worker(server: Server) -> None:
    async with control_client(server.url, timeout_s=90) as client:
        params = {"engine_id": 0, "rank": 0}
        body = {"fault_tolerance_instruction": "restart-worker", "fault_tolerance_params": params}
        answer = await client.post("/fault_tolerance/apply", json=body)
        assert answer.status_code == 200, answer.text


@pytest.mark.matrix
def test_of_a_killed_engine_core_no_stopped_worker_stays_not_even_one_that_took_a_place(servers: Servers) -> None:
    with servers.start("--max-engine-restarts", "0") as server:
        first = only(server, ProcessKind.WORKER)
        run(replace_the_worker(server))
        second = only(server, ProcessKind.WORKER)
        assert second != first
        os.kill(second, signal.SIGSTOP)
        os.kill(only(server, ProcessKind.ENGINE_CORE), signal.SIGKILL)
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert "engine core 0 was lost: killed by SIGKILL" in last_line(server)
        assert left_behind(server) == []


def test_without_an_instruction_the_instance_ends_after_the_recovery_timeout(servers: Servers) -> None:
    arguments = ("--enable-fault-injection", "--fault-policy", "external", "--engine-recovery-timeout", "3")
    with servers.start(*arguments) as server:
        began = time.monotonic()
        run(hurt(server, InjectionSpec(phase=Phase.FORWARD)))
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert time.monotonic() - began < 25
        assert "no command repaired the fault within 3 s" in last_line(server)


def test_a_retry_that_fails_leaves_the_instance_paused_and_says_so(servers: Servers) -> None:
    server = servers.shared(V1_SYNC)
    with configured(server, fault_policy="external"):
        run(_failing_retry(server))
    assert run(well(server)) is None


async def _failing_retry(server: Server) -> None:
    instruction = {"fault_tolerance_instruction": "retry"}
    async with Control(server.url) as control, control_client(server.url, timeout_s=60) as client:
        await control.inject(InjectionSpec(phase=Phase.RECOVERY))
        await control.inject(InjectionSpec(phase=Phase.FORWARD))
        victim = asyncio.create_task(client.post("/v1/completions", json=BODY))
        async with asyncio.timeout(20):
            while await state(client) != "paused":
                await asyncio.sleep(0.02)
        failed = await client.post("/fault_tolerance/apply", json=instruction)
        assert failed.status_code == 500
        assert "Failed to handle fault." in failed.text
        again = await client.post("/fault_tolerance/apply", json=instruction)
        assert again.status_code == 200
        assert (await victim).status_code == 200


def test_a_killed_worker_that_may_not_be_replaced_ends_the_instance_and_not_with_success(servers: Servers) -> None:
    with servers.start(*NO_RESTARTS) as server:
        os.kill(only(server, ProcessKind.WORKER), signal.SIGKILL)
        run(_hurt_plain(server))
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert "a worker process was lost" in last_line(server)


def test_a_killed_engine_core_that_is_not_replaced_ends_the_instance_and_not_with_success(servers: Servers) -> None:
    with servers.start("--max-engine-restarts", "0") as server:
        os.kill(only(server, ProcessKind.ENGINE_CORE), signal.SIGKILL)
        assert wait_ended(server, 40) == EXIT_DEFEATED
        assert "engine core 0 was lost" in last_line(server)


async def _hurt_plain(server: Server) -> None:
    async with control_client(server.url, timeout_s=30) as client:
        try:
            await client.post("/v1/completions", json=BODY)
        except httpx.HTTPError:
            return  # the connection may go down with the instance


# Every shared server ends with SIGTERM while it is healthy, and is looked at.
@pytest.mark.parametrize("paused", [in_matrix(False), True], ids=["healthy", "paused"])
def test_sigterm_ends_a_server_orderly_and_leaves_nothing_behind(servers: Servers, paused: bool) -> None:
    arguments = ("--enable-fault-injection", "--fault-policy", "external")
    with servers.start(*arguments) as server:
        if paused:
            run(_leave_paused(server))
        os.kill(server.pid, signal.SIGTERM)
        assert wait_ended(server, 30) == 0
        assert left_behind(server) == []
        assert "instance ended" not in log_tail(server.spec.log, 5)


async def _leave_paused(server: Server) -> None:
    async with Control(server.url) as control, control_client(server.url, timeout_s=60) as client:
        await control.inject(InjectionSpec(phase=Phase.STEP_START))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await client.post("/v1/completions", json=BODY)
        assert (await client.get("/fault_tolerance/ready")).status_code == 503
