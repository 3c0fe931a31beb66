"""Streams of a load: progress, pauses, counts in metrics, and comparison with a fault-free run."""

from __future__ import annotations

import asyncio
import time

import httpx

from holdfast.chaos.checker import compare_runs, gaps_touching_s
from holdfast.chaos.control import Control
from holdfast.chaos.history import History
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.injection import InjectionSpec


def requests_left(metrics: str) -> list[str]:
    """The samples of a server's metrics that count requests which run or wait, as far as they are not 0."""
    kinds = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
    samples = [line for line in metrics.splitlines() if line.startswith(kinds)]
    assert samples, "metrics without the number of requests tell nothing"
    return [line for line in samples if float(line.rsplit(" ", 1)[1])]


async def wait_without_requests(client: httpx.AsyncClient, within_s: float = 30) -> None:
    """Wait until no request runs or waits; tells what is left, and the instance's status, where that lasts too long."""
    deadline = time.monotonic() + within_s
    while left := requests_left((await client.get("/metrics")).text):
        assert time.monotonic() < deadline, f"{left} {(await client.get('/fault_tolerance/status')).text}"
        await asyncio.sleep(0.1)


def interruptions(histories: list[History], killed_at: float) -> list[float]:
    """Return how long each unfinished stream waited around the kill."""
    return [max(gaps, default=0.0) for h in histories if (gaps := gaps_touching_s(h, killed_at, killed_at))]


def counted(metrics: str, name: str, label: str) -> float:
    """Return the sum over all samples of a metric with a label."""
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}{{") and label in line]
    assert lines, f"metrics without {name} with {label} count nothing"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


IDLE_S = 2.0  # longer than a group without requests runs on


async def begun(running: Load) -> None:
    async with asyncio.timeout(60):
        while min(len(h.token_ids) for h in running.histories) < 5:
            await asyncio.sleep(0.005)


async def faulted(server: Server, specs: list[StreamSpec], *injections: InjectionSpec) -> tuple[list[History], list]:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        for injection in injections:
            await control.inject(injection)
        histories = await Load(server.url, specs).run()
        events = await control.wait_recovered(before, faults=1)
        assert await control.unwell() is None
    return histories, events


def assert_exact(expected: list[History], found: list[History]) -> None:
    verdict = compare_runs(expected, found)
    assert verdict.exact, verdict.reasons


STANDS_S = 0.6  # long enough for hundreds of tokens, were anything moving


def tokens(histories: list[History]) -> int:
    return sum(len(h.token_ids) for h in histories)
