"""Fifty faults one after another on one server: nothing lost, nothing grows."""

from __future__ import annotations

import random
from dataclasses import dataclass

import psutil
import pytest

from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import MANY_RETRIES, V1_ASYNC, V1_SYNC, Kind, Servers, in_matrix, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

FAULTS = 50
WARM_UP = 25  # first uses allocate: threads of clients, arenas of each of them, kernels
ALLOWED_GROWTH = 0.02
SEED = 20260


@dataclass(frozen=True)
class Held:
    """What one process holds."""

    fds: int
    threads: int
    memory_bytes: int


def held(server: Server) -> dict[int, Held]:
    root = psutil.Process(server.pid)
    processes = [root, *root.children(recursive=True)]
    return {p.pid: Held(p.num_fds(), p.num_threads(), p.memory_info().rss) for p in processes}


def load(salt: str) -> list[StreamSpec]:
    return [StreamSpec(f"s{i}", f"Count the bells {i}:", max_tokens=40, cache_salt=salt) for i in range(8)]


async def _one_fault(server: Server, phase: Phase, after_steps: int) -> list:
    async with Control(server.url) as control:
        before = await control.last_sequence()
        await control.inject(InjectionSpec(phase=phase, after_steps=after_steps))
        histories = await Load(server.url, load(fresh_salt())).run()
        await control.wait_recovered(before)
        assert await control.unwell() is None
    return histories


@pytest.mark.parametrize("kind", [in_matrix(V1_SYNC), V1_ASYNC], ids=lambda k: k.name)
def test_fifty_faults_lose_nothing_and_leak_nothing(servers: Servers, kind: Kind) -> None:
    chance = random.Random(SEED)
    phases = [p for p in Phase if p not in (Phase.DP_SYNC, Phase.RECOVERY, Phase.REBUILD, Phase.RESUME)]
    with servers.start("--enable-fault-injection", *MANY_RETRIES, kind=kind) as server:
        expected = run(Load(server.url, load(fresh_salt())).run())
        before: dict[int, Held] = {}
        for number in range(WARM_UP + FAULTS):
            if number == WARM_UP:
                before = held(server)
            phase, after = chance.choice(phases), chance.randrange(30)
            verdict = compare_runs(expected, run(_one_fault(server, phase, after)))
            assert verdict.exact, (SEED, number, phase, after, verdict.reasons)
        after_all = held(server)
    assert after_all.keys() == before.keys()
    for pid, was in before.items():
        now = after_all[pid]
        assert now.fds <= was.fds * (1 + ALLOWED_GROWTH), (pid, was, now)
        assert now.threads <= was.threads * (1 + ALLOWED_GROWTH), (pid, was, now)
        assert now.memory_bytes <= was.memory_bytes * (1 + ALLOWED_GROWTH), (pid, was, now)
