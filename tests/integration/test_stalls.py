"""A rank that makes no progress without a word: found by that, named, replaced, and every stream is exact.

And what only takes long is left alone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from holdfast.bench.topologies import DP2, MOE_EP, ONE, PP2, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.core.stalls.step_deadlines import Limits
from integration.helpers.processes import workers_of
from integration.helpers.servers import NO_LIMITS, V1_ASYNC, V1_SYNC, Servers, in_matrix_but, left_behind, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

TOKENS = 250
RECOVERY_S = 60.0
DETECTED_WITHIN_S = 2.0
INTERRUPTION_S = 4.0
SILENT = (FaultKind.STOP, FaultKind.HANG, FaultKind.SPIN, FaultKind.DEADLOCK)


class Bench:
    """One server whose steps are known to it, and its fault-free run."""

    def __init__(self, server: Server, topology: Topology) -> None:
        self.server, self.topology = server, topology
        self._expected: list[History] = []

    @property
    def victim(self) -> tuple[int, int]:
        return self.topology.places[-1]

    def expected(self) -> list[History]:
        if not self._expected:
            self._expected = self.load()
        return self._expected

    def load(self) -> list[History]:
        return run(Load(self.server.url, every_feature(fresh_salt(), TOKENS)).run())

    def assert_exact(self, found: list[History]) -> None:
        verdict = compare_runs(self.expected(), found)
        assert verdict.exact, verdict.reasons

    def through(self, spec: InjectionSpec) -> tuple[list[dict], list[History]]:
        """A load through an injected fault: the events and the streams."""

        async def scenario() -> tuple[list[dict], list[History]]:
            async with Control(self.server.url) as control:
                await control.await_standbys()
                before = await control.last_sequence()
                await control.inject(spec)
                histories = await Load(self.server.url, every_feature(fresh_salt(), TOKENS)).run()
                return await control.wait_recovered(before, timeout_s=RECOVERY_S), histories

        self.expected()
        return run(scenario())


def faults(events: list[dict]) -> list[dict]:
    return [e["fault"] for e in events if e["kind"] == FAULT]


def replaced(events: list[dict]) -> list[tuple[int, int]]:
    """Engine and rank of everybody who got a new process; in lockstep every engine tells of its recovery."""
    recovered = [e for e in events if e["kind"] == RECOVERED]
    return [(e["engine_id"], rank) for e in recovered for rank in e["report"].get("replaced_ranks", ())]


def longest_gap(histories: list[History]) -> tuple[float, float]:
    """The longest time between two tokens of a stream, and when it began (monotonic)."""
    gaps = [(later - at, at) for h in histories for at, later in itertools.pairwise(h.arrivals_s)]
    return max(gaps)


SERVED = [(ONE, V1_ASYNC), (TP2, V1_SYNC), (PP2, V1_SYNC), (DP2, V1_SYNC), (MOE_EP, V1_SYNC)]


@pytest.fixture(scope="module", params=in_matrix_but(SERVED[0], SERVED), ids=lambda p: p[0].name)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Bench]:
    topology, kind = request.param
    standbys = str(topology.ranks_per_engine)  # one for each rank: each has read the weights of its own
    arguments = ["--standby-preload", "--standby-workers", standbys, *NO_LIMITS]
    with servers.of(topology, kind, arguments) as server:
        yield Bench(server, topology)
    assert left_behind(server) == []


@pytest.mark.timed
@pytest.mark.parametrize("kind", SILENT)
def test_a_rank_that_goes_silent_in_a_decode_is_named_and_replaced(bench: Bench, kind: FaultKind) -> None:
    engine, rank = bench.victim
    bench.expected()
    bench.assert_exact(bench.load())  # what a replacement before this one unlearned is known again
    spec = InjectionSpec(phase=Phase.FORWARD, kind=kind, engine_id=engine, rank=rank, after_steps=80)
    events, histories = bench.through(spec)
    bench.assert_exact(histories)
    deepest = [f for f in faults(events) if f["fault_class"] == FaultClass.UNRESPONSIVE]
    assert {(f["engine_id"], f["rank"]) for f in deepest} == {(engine, rank)}
    assert replaced(events) == [(engine, rank)]
    gap_s, began = longest_gap(histories)
    detected_s = deepest[0]["at"] - (began + time.time() - time.monotonic())
    print(f"{bench.topology.name} {kind}: detected after {detected_s:.2f} s, interruption {gap_s:.2f} s")
    assert detected_s <= DETECTED_WITHIN_S
    assert gap_s <= INTERRUPTION_S


@pytest.mark.timed
def test_a_step_that_takes_long_and_ends_before_its_deadline_is_no_stall(bench: Bench) -> None:
    engine, rank = bench.victim
    expected = bench.expected()
    slow = InjectionSpec(
        phase=Phase.FORWARD,
        kind=FaultKind.SLOW,
        seconds=0.7 * Limits().decode_floor_s,
        engine_id=engine,
        rank=rank,
        after_steps=80,
    )

    async def scenario() -> tuple[list[dict], list[History]]:
        async with Control(bench.server.url) as control:
            before = await control.last_sequence()
            await control.inject(slow)
            histories = await Load(bench.server.url, every_feature(fresh_salt(), TOKENS)).run()
            return await control.events(before), histories

    events, histories = run(scenario())
    assert faults(events) == []
    assert longest_gap(histories)[0] >= slow.seconds
    verdict = compare_runs(expected, histories)
    assert verdict.exact, verdict.reasons


@pytest.mark.timed
def test_the_longest_prefill_beside_processes_that_take_every_processor_is_no_stall(bench: Bench) -> None:
    expected = bench.expected()
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:

        async def scenario() -> tuple[list[dict], list[History]]:
            async with Control(bench.server.url) as control:
                before = await control.last_sequence()
                longest = StreamSpec("long", "storm " * 900, max_tokens=8, cache_salt=fresh_salt())
                load = [*every_feature(fresh_salt(), TOKENS), longest]
                histories = await Load(bench.server.url, load).run()
                return await control.events(before), histories

        events, histories = run(scenario())
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert faults(events) == []
    verdict = compare_runs(expected, histories[: len(expected)])
    assert verdict.exact, verdict.reasons


@pytest.mark.parametrize("kind", [FaultKind.STOP, FaultKind.HANG])
def test_an_engine_core_that_goes_silent_is_replaced_with_what_it_served(bench: Bench, kind: FaultKind) -> None:
    if bench.topology is not ONE:
        pytest.skip("once is enough")
    bench.assert_exact(bench.load())

    async def scenario() -> tuple[list[dict], list[History]]:
        async with Control(bench.server.url) as control:
            before = await control.last_sequence()
            await control.inject(InjectionSpec(phase=Phase.SCHEDULE_END, kind=kind, after_steps=80))
            histories = await Load(bench.server.url, every_feature(fresh_salt(), TOKENS)).run()
            events: list[dict] = []
            async with asyncio.timeout(RECOVERY_S):
                while not any(e["kind"] == "engine-restarted" for e in events):
                    await asyncio.sleep(0.2)
                    events = await control.events(before)
            return events, histories

    bench.expected()
    events, histories = run(scenario())
    bench.assert_exact(histories)
    lost = [e for e in events if e["kind"] == "engine-lost"]
    assert ["killed after a stall" in e["reason"] for e in lost] == [True]


def test_a_worker_that_is_stopped_while_nothing_is_asked_of_it_is_replaced_before_anybody_asks(bench: Bench) -> None:
    async def scenario() -> list[dict]:
        async with Control(bench.server.url) as control:
            await control.await_standbys()
            before = await control.last_sequence()
            os.kill(workers_of(bench.server)[bench.victim], signal.SIGSTOP)
            return await control.wait_recovered(before, timeout_s=RECOVERY_S)

    bench.expected()
    assert replaced(run(scenario())) == [bench.victim]
    bench.assert_exact(bench.load())
