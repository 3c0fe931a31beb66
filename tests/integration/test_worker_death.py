"""A worker process that is gone, or hangs: its rank gets a new one, and every stream ends with the right tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from holdfast.bench.topologies import MOE_EP, ONE, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, RECOVERY_STARTED, Control, token_headers
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, few_tokens, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from integration.helpers.processes import workers_of
from integration.helpers.servers import (
    NO_LIMITS,
    V1_ASYNC,
    V1_SYNC,
    V2_SYNC,
    Asks,
    Kind,
    Servers,
    in_matrix,
    left_behind,
    run,
    served_name,
    well,
)

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

TOKENS = 250
RECOVERY_S = 90.0


def many_tokens(salt: str) -> list[StreamSpec]:
    return every_feature(salt, TOKENS)


@dataclass(frozen=True)
class Bench:
    """One server and its fault-free run."""

    server: Server
    topology: Topology
    expected: list[History]
    asks: Asks = many_tokens

    def assert_exact_through(self, hurt: Callable[[Bench], None], tokens: int = 5) -> list[dict]:
        """A load that is hurt in its middle, then once more into what that left in the prefix cache; the events."""
        salt = fresh_salt()
        found, events = run(self._hurt_in_the_middle(hurt, salt, tokens))
        for histories in (found, run(Load(self.server.url, self.asks(salt)).run())):
            verdict = compare_runs(self.expected, histories)
            assert verdict.exact, verdict.reasons
        assert run(well(self.server)) is None
        return events

    def assert_exact_through_injection(self, spec: InjectionSpec) -> list[dict]:
        """The same with a fault that was armed before: it comes at a moment of the run, however late this client is."""

        async def scenario() -> tuple[list[History], list[dict]]:
            async with Control(self.server.url) as control:
                before = await control.last_sequence()
                await control.inject(spec)
                found = await Load(self.server.url, self.asks(fresh_salt())).run()
                return found, await control.wait_recovered(before, timeout_s=RECOVERY_S)

        found, events = run(scenario())
        verdict = compare_runs(self.expected, found)
        assert verdict.exact, verdict.reasons
        return events

    async def _hurt_in_the_middle(
        self, hurt: Callable[[Bench], None], salt: str, tokens: int
    ) -> tuple[list[History], list[dict]]:
        async with Control(self.server.url) as control:
            before = await control.last_sequence()
            load = Load(self.server.url, self.asks(salt))
            running = asyncio.create_task(load.run())
            async with asyncio.timeout(60):
                while min(len(h.token_ids) for h in load.histories) < tokens:
                    await asyncio.sleep(0.005)
            await asyncio.to_thread(hurt, self)
            found = await running
            return found, await control.wait_recovered(before, timeout_s=RECOVERY_S)

    def workers(self) -> dict[tuple[int, int], int]:
        return workers_of(self.server)

    def kill(self, engine: int, rank: int) -> None:
        os.kill(self.workers()[engine, rank], signal.SIGKILL)


def of_kind(events: list[dict], kind: str) -> list[dict]:
    return [e for e in events if e["kind"] == kind]


def lost_ranks(events: list[dict]) -> set[tuple[int, int]]:
    lost = [e["fault"] for e in of_kind(events, FAULT) if e["fault"]["fault_class"] == FaultClass.WORKER_LOST]
    return {(fault["engine_id"], fault["rank"]) for fault in lost}


def replaced(events: list[dict]) -> list[tuple[int, int]]:
    reports = of_kind(events, RECOVERED)
    return sorted((e["engine_id"], rank) for e in reports for rank in e["report"].get("replaced_ranks", ()))


SERVED = [(ONE, V1_ASYNC), (TP2, V1_ASYNC), (MOE_EP, V1_SYNC)]
PAIR, GROUP = SERVED[1:]


def on(*wanted: tuple[Topology, Kind]) -> pytest.MarkDecorator:
    """On these `make test` runs it, on the others `make nightly` does."""
    values = [served if served in wanted else in_matrix(served) for served in SERVED]
    return pytest.mark.parametrize("bench", values, ids=served_name, indirect=True)


@pytest.fixture(params=SERVED, ids=served_name)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Bench:
    topology, kind = request.param
    expected = servers.reference(topology, kind, many_tokens)
    return Bench(servers.shared_of(topology, kind), topology, expected)


VICTIMS = [
    pytest.param(SERVED[0], 0, marks=pytest.mark.spawned),
    pytest.param(PAIR, 0, marks=pytest.mark.spawned),
    (PAIR, 1),
    in_matrix(GROUP, 0),
    pytest.param(GROUP, 1, marks=pytest.mark.spawned),
]


@pytest.mark.parametrize(
    ("bench", "place"), VICTIMS, indirect=["bench"], ids=lambda p: str(p) if p in (0, 1) else served_name(p)
)
def test_a_killed_worker_is_replaced_and_changes_no_token(bench: Bench, place: int) -> None:
    victim = bench.topology.places[place]
    before = bench.workers()
    events = bench.assert_exact_through(lambda b: b.kill(*victim))
    after = bench.workers()
    assert lost_ranks(events) == {victim}
    assert replaced(events) == [victim]
    assert {where for where in before if before[where] != after[where]} == {victim}, "survivors keep their process"


@on(GROUP)
def test_all_workers_killed_at_once_are_replaced_and_change_no_token(bench: Bench) -> None:
    def kill_all(bench: Bench) -> None:
        for pid in bench.workers().values():
            os.kill(pid, signal.SIGKILL)

    events = bench.assert_exact_through(kill_all)
    assert set(replaced(events)) == set(bench.topology.places)


@on(PAIR)
def test_a_worker_killed_again_while_its_replacement_loads_changes_no_token(bench: Bench) -> None:
    def twice(bench: Bench) -> None:
        victim = bench.topology.places[-1]
        first = bench.workers()[victim]
        bench.kill(*victim)
        deadline = time.monotonic() + 60
        while (now := bench.workers().get(victim, first)) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert now != first, "no replacement began to load"
        os.kill(now, signal.SIGKILL)

    events = bench.assert_exact_through(twice)
    assert len(of_kind(events, RECOVERY_STARTED)) >= 2


@on(PAIR)
def test_a_survivor_killed_while_the_replacement_of_the_first_loads_changes_no_token(bench: Bench) -> None:
    first, survivor = bench.topology.places[-1], bench.topology.places[0]

    def one_after_the_other(bench: Bench) -> None:
        before = bench.workers()
        bench.kill(*first)
        deadline = time.monotonic() + 60
        while bench.workers().get(first, before[first]) == before[first]:
            assert time.monotonic() < deadline, "no replacement began to load"
            time.sleep(0.02)
        os.kill(before[survivor], signal.SIGKILL)

    events = bench.assert_exact_through(one_after_the_other)
    assert set(replaced(events)) == {first, survivor}


@on(PAIR)
def test_an_idle_worker_that_is_killed_is_replaced_before_anybody_asks(bench: Bench) -> None:
    async def scenario() -> list[dict]:
        async with Control(bench.server.url) as control:
            before = await control.last_sequence()
            bench.kill(*bench.topology.places[-1])
            return await control.wait_recovered(before, timeout_s=RECOVERY_S)

    assert replaced(run(scenario())) == [bench.topology.places[-1]]
    verdict = compare_runs(bench.expected, run(Load(bench.server.url, many_tokens(fresh_salt())).run()))
    assert verdict.exact, verdict.reasons


@on(PAIR)
def test_a_stopped_rank_that_is_told_to_pause_is_taken_for_hung_and_replaced_when_all_go_on(bench: Bench) -> None:
    """It cannot say that it has stopped, and its peer waits for it in a collective until that is broken."""
    if len(bench.topology.places) < 2:
        pytest.skip("there is one rank only")
    stopped = bench.topology.places[1]

    def stop_pause_and_resume(bench: Bench) -> None:
        os.kill(bench.workers()[stopped], signal.SIGSTOP)
        for instruction in ("pause", "resume"):
            body = {"fault_tolerance_instruction": instruction, "fault_tolerance_timeout": 60}
            answer = httpx.post(
                f"{bench.server.url}/fault_tolerance/apply",
                headers=token_headers(bench.server.url),
                json=body,
                timeout=60,
            )
            assert answer.status_code == 200, answer.text

    assert replaced(bench.assert_exact_through(stop_pause_and_resume)) == [stopped]


def test_retries_that_do_not_last_end_in_a_new_process_for_the_rank(servers: Servers) -> None:
    """What is wrong with a process goes with it; with standbys, which are replaced in their turn."""
    arguments = ("--enable-fault-injection", "--max-retries", "2", "--standby-workers", "1", "--standby-preload")
    with servers.start(*arguments) as server:
        bench = Bench(server, ONE, run(Load(server.url, many_tokens(fresh_salt())).run()))
        run(_standbys_are_ready(server))
        events = bench.assert_exact_through_injection(InjectionSpec(phase=Phase.FORWARD, after_steps=60, times=1000))
        assert replaced(events) == [(0, 0)]
        run(_standbys_are_ready(server))
        death = InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.KILL, after_steps=60)
        events = bench.assert_exact_through_injection(death)
        assert [e["report"]["standbys_used"] for e in of_kind(events, RECOVERED)] == [1]
    assert left_behind(server) == []


LANES = 8


@pytest.mark.matrix
def test_the_second_of_two_kills_under_full_load_finds_a_standby_too(servers: Servers) -> None:
    """At the lowest priority a standby got no processor beside the load, and the kill cost a whole start."""
    arguments = (*NO_LIMITS, "--standby-workers", "1", "--standby-preload", "--wait-for-standby")
    with servers.start(*arguments, cold=True) as server:
        bench = Bench(server, ONE, run(Load(server.url, many_tokens(fresh_salt())).run()))
        events = run(_kill_twice_under_load(bench))
        assert [e["report"]["standbys_used"] for e in of_kind(events, RECOVERED)] == [1, 1]
    assert left_behind(server) == []


async def _kill_twice_under_load(bench: Bench) -> list[dict]:
    """Kill the worker whenever a standby is ready, beside lanes of requests without a pause; check every answer."""
    answers: list[list[History]] = []
    is_over = asyncio.Event()

    async def lane() -> None:
        while not is_over.is_set():
            answers.append(await Load(bench.server.url, bench.asks(fresh_salt())[:1]).run())

    async with Control(bench.server.url) as control, asyncio.TaskGroup() as tasks:
        before = await control.last_sequence()
        lanes = [tasks.create_task(lane()) for _ in range(LANES)]
        for number in (1, 2):
            await control.await_standbys(RECOVERY_S)
            assert (await control.unwell()) is None, "the standby is there, so the server is ready"
            bench.kill(0, 0)
            events = await control.wait_recovered(before, faults=number, timeout_s=RECOVERY_S)
        is_over.set()
        await asyncio.gather(*lanes)
    for found in answers:
        verdict = compare_runs(bench.expected[:1], found)
        assert verdict.exact, verdict.reasons
    return events


async def _standbys_are_ready(server: Server) -> None:
    async with Control(server.url) as control:
        await control.await_standbys()


@pytest.mark.matrix
def test_model_runner_v2_goes_on_in_a_new_worker(servers: Servers) -> None:
    with servers.start("--enable-fault-injection", kind=V2_SYNC) as server:
        bench = Bench(server, ONE, run(Load(server.url, few_tokens(fresh_salt())).run()), few_tokens)
        events = bench.assert_exact_through(lambda b: b.kill(0, 0), tokens=3)
        assert replaced(events) == [(0, 0)]
