"""Engine cores of a running server: kill one in the middle of its streams, wait for its replacement."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace

import msgspec

from holdfast.chaos.control import LOST, Control, control_client
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec

TOKENS = 500  # enough that the kill comes in their middle, also where the client lags behind
RESTART_S = 180.0


def spread(specs: list[StreamSpec], engines: int) -> list[StreamSpec]:
    """Give each engine a fixed share of the requests."""
    if engines == 1:
        return specs
    return [replace(spec, data_parallel_rank=number % engines) for number, spec in enumerate(specs)]


def for_one(salt: str) -> list[StreamSpec]:
    return every_feature(salt, TOKENS)


def for_two(salt: str) -> list[StreamSpec]:
    return spread(every_feature(salt, TOKENS), 2)


def load(server: Server, engines: int) -> Load:
    return Load(server.url, {1: for_one, 2: for_two}[engines](fresh_salt()))


async def engines_of(server: Server) -> list[dict]:  # type: ignore[type-arg]
    async with control_client(server.url, timeout_s=30) as client:
        return list((await client.get("/fault_tolerance/status")).json()["engines"])


async def wait_healthy(server: Server) -> None:
    async with asyncio.timeout(RESTART_S):
        while any(e["state"] != "healthy" for e in await engines_of(server)):
            await asyncio.sleep(0.05)


async def wait_replaced(server: Server, engine_id: int, pid: int) -> None:
    """Wait until an engine core has another process id than `pid` and all engines are healthy."""
    async with asyncio.timeout(RESTART_S):
        while (await engines_of(server))[engine_id]["pid"] in (None, pid):
            await asyncio.sleep(0.05)
    await wait_healthy(server)


async def replaced_at(server: Server, engine_id: int) -> float:
    """Return when the engine core was replaced and all engines were healthy (monotonic seconds)."""
    await wait_replaced(server, engine_id, (await engines_of(server))[engine_id]["pid"])
    return time.monotonic()


async def kill_in_mid_stream(server: Server, running: Load, engine_id: int, tokens: int = 5) -> float:
    """Kill an engine core as soon as each of the streams has a few tokens, far from the end."""
    pid = (await engines_of(server))[engine_id]["pid"]
    victims = [h for h in running.histories if h.engine_id in (None, engine_id)]
    async with asyncio.timeout(60):
        while min(len(h.token_ids) for h in victims) < tokens:
            await asyncio.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()


def crash(engine_id: int, phase: Phase) -> list[InjectionSpec]:
    """Return injections of an error that nothing contains: in mid stream, or in the recovery from a fault there."""
    crash = InjectionSpec(phase=phase, kind=FaultKind.CRASH, engine_id=engine_id)
    if phase is Phase.RECOVERY:
        return [crash, InjectionSpec(phase=Phase.SCHEDULE_END, engine_id=engine_id, after_steps=60)]
    return [msgspec.structs.replace(crash, after_steps=60)]


async def crashed_run(server: Server, running: Load, engine_id: int, phase: Phase) -> tuple[list[History], str]:
    """Return the histories of the streams and the reason of the engine core's loss."""
    async with Control(server.url) as control:
        before = await control.last_sequence()
        for spec in crash(engine_id, phase):
            await control.inject(spec)
        observed = await running.run()
        [lost] = [event for event in await control.events(before) if event["kind"] == LOST]
    return observed, str(lost["reason"])
