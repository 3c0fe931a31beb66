"""Faults that meet something else: a full KV cache, a rank that stops answering, a request on its way out."""

from __future__ import annotations

import asyncio
import os
import signal

import httpx
import psutil
import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import LONG, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import MODEL_NAME, Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import (
    MANY_RETRIES,
    V1_ASYNC,
    V1_SYNC,
    Kind,
    Servers,
    in_matrix,
    left_behind,
    run,
    state,
)

pytestmark = [pytest.mark.host, pytest.mark.server]

KINDS = pytest.mark.parametrize("kind", [in_matrix(V1_SYNC), V1_ASYNC], ids=lambda k: k.name)

# Eight requests of up to four blocks of 128 tokens; the null block takes one of these.
FEW_BLOCKS = ("--num-gpu-blocks-override", "18")


def greedy(salt: str, tokens: int = 330) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"The keeper of boat {i}", max_tokens=tokens, cache_salt=salt) for i in range(8)]


def preemptions(server: Server) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_preemptions_total"))


async def _through(server: Server, specs: list[StreamSpec], *injections: InjectionSpec) -> list[History]:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        for injection in injections:
            await control.inject(injection)
        histories = await Load(server.url, specs).run()
        await control.wait_recovered(before, faults=len(injections))
        assert await control.unwell() is None
    return histories


@KINDS
def test_faults_while_requests_fight_for_a_full_cache_change_no_token(servers: Servers, kind: Kind) -> None:
    with servers.start("--enable-fault-injection", *MANY_RETRIES, *FEW_BLOCKS, kind=kind) as server:
        expected = run(Load(server.url, greedy(fresh_salt())).run())
        assert preemptions(server) > 0, "the cache was not full: the test shows nothing"
        for phase in (Phase.FORWARD, Phase.SCHEDULE_END, Phase.SAMPLE_END, Phase.OUTPUT_REQUEST):
            faults = [InjectionSpec(phase=phase, after_steps=steps) for steps in (60, 120, 180, 240)]
            verdict = compare_runs(expected, run(_through(server, greedy(fresh_salt()), *faults)))
            assert verdict.exact, (phase, verdict.reasons)


@KINDS
def test_without_a_prefix_cache_requests_are_rewound_all_the_same(servers: Servers, kind: Kind) -> None:
    with servers.start("--enable-fault-injection", "--no-enable-prefix-caching", kind=kind) as server:
        expected = run(Load(server.url, greedy("", 60)).run())
        for phase in (Phase.STEP_START, Phase.FORWARD, Phase.OUTPUT_REQUEST):
            verdict = compare_runs(
                expected, run(_through(server, greedy("", 60), InjectionSpec(phase=phase, after_steps=20)))
            )
            assert verdict.exact, (phase, verdict.reasons)


async def _leave_in_flight(server: Server, expected: list[History], chunk: int) -> None:
    """A client leaves while its prompt is being read; its twin then meets the same prompt after a fault."""
    salt = fresh_salt()
    prompt = LONG * 2
    async with Control(server.url) as control, control_client(server.url, timeout_s=30) as client:
        await control.inject(InjectionSpec(phase=Phase.STEP_START, after_steps=chunk))
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": 600,
            "cache_salt": salt,
            "stream": True,
            "ignore_eos": True,
        }
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02 + 0.02 * chunk):
                await client.post("/v1/completions", json=body)
        specs = [StreamSpec("twin", prompt, max_tokens=20, cache_salt=salt)]
        twin = await Load(server.url, specs).run()
        again = await Load(server.url, specs).run()
    for found in (twin, again):
        verdict = compare_runs(expected, found)
        assert verdict.exact, (chunk, verdict.reasons)


@KINDS
def test_a_client_that_leaves_in_the_failing_step_leaves_no_poison_in_the_prefix_cache(
    servers: Servers, kind: Kind
) -> None:
    server = servers.shared(kind)
    expected = run(Load(server.url, [StreamSpec("twin", LONG * 2, max_tokens=20, cache_salt=fresh_salt())]).run())
    for chunk in range(6):
        run(_leave_in_flight(server, expected, chunk))


async def _retry_a_stopped_worker(server: Server) -> httpx.Response:
    async with Control(server.url) as control, control_client(server.url, timeout_s=60) as client:
        await control.inject(InjectionSpec(phase=Phase.FORWARD))
        body = {"model": MODEL_NAME, "prompt": "The keeper", "max_tokens": 30}
        victim = asyncio.create_task(client.post("/v1/completions", json=body))
        async with asyncio.timeout(20):
            while await state(client) != "paused":
                await asyncio.sleep(0.02)
        os.kill(_worker(server), signal.SIGSTOP)
        failed = await client.post("/fault_tolerance/apply", json={"fault_tolerance_instruction": "retry"})
        assert failed.status_code == 500
        assert "did not answer in time" in failed.text
        again = await client.post("/fault_tolerance/apply", json={"fault_tolerance_instruction": "retry"})
        assert again.status_code == 200, again.text
        return await victim


def _worker(server: Server) -> int:
    children = psutil.Process(server.pid).children(recursive=True)
    return next(c.pid for c in children if "Worker" in c.name() or "Worker" in " ".join(c.cmdline()))


def test_a_rank_that_stops_answering_in_a_recovery_gets_a_new_process_with_the_next_retry(servers: Servers) -> None:
    # Without the watch of stalls, which would be faster than the bound of a recovery.
    arguments = (
        "--enable-fault-injection",
        "--fault-policy",
        "external",
        "--drain-timeout",
        "2",
        "--no-stall-detection",
    )
    with servers.start(*arguments) as server:
        answer = run(_retry_a_stopped_worker(server))
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 30
    assert left_behind(server) == []
