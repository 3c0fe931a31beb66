"""A request that makes every batch fail that it is in: it ends alone with an error, everybody else is exact."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest
from msgspec.structs import replace

from holdfast.bench.topologies import MOE_EP, ONE, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import Control, token_headers
from holdfast.chaos.history import History
from holdfast.chaos.loads import fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.core.stalls.step_deadlines import Limits
from integration.helpers.servers import (
    V1_ASYNC,
    V1_SYNC,
    V2_ASYNC,
    Kind,
    Servers,
    in_matrix,
    left_behind,
    run,
    served_name,
    well,
)

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

STREAMS = 32
TOKENS = 60
FEW_TOKENS = 12  # what Triton's interpreter runs within seconds
FOREVER = 1000
MOST_FAULTS = 7
FAULTS_OF_A_NAMED_ONE = 4
REPETITIONS = 20
SLOWEST_S = Limits().relearning_s + 10  # a stall in a new process, and its recovery
SETTLED_WITHIN_S = 60.0
ARGUMENTS = ("--poison-detection", "--stall-detection", "--check-logits")


class Bench:
    """One server, and the fault-free run of what it is asked."""

    def __init__(self, server: Server, topology: Topology, kind: Kind) -> None:
        self.server, self.topology = server, topology
        self.tokens = TOKENS if kind.runner == "v1" else FEW_TOKENS
        self._expected: list[History] = []

    def load(self, guilty: Sequence[int] = (), name: str = "") -> list[StreamSpec]:
        """The same 32 streams as ever; some of them carry a name in their ids."""
        salt = fresh_salt()

        def spec(index: int) -> StreamSpec:
            seeded = {"temperature": 0.8, "seed": index} if index % 3 == 0 else {}
            return StreamSpec(
                f"stream {index}",
                f"The keeper of boat {index} ",
                max_tokens=self.tokens,
                cache_salt=salt,
                request_id=f"{name}-{index}" if index in guilty else None,
                **seeded,  # type: ignore[arg-type]
            )

        return [spec(index) for index in range(STREAMS)]

    def expected(self) -> list[History]:
        if not self._expected:
            self._expected = run(Load(self.server.url, self.load(), timeout_s=60).run())
        return self._expected

    def learn_steps(self) -> None:
        """What a step of each size takes is known only when there were some."""
        for _ in range(3):
            run(Load(self.server.url, self.load(), timeout_s=60).run())

    def through(self, *specs: InjectionSpec, guilty: Sequence[int]) -> Found:
        self.expected()
        return run(self._through(specs, guilty))

    async def _through(self, specs: Sequence[InjectionSpec], guilty: Sequence[int]) -> Found:
        async with Control(self.server.url) as control:
            before = await control.last_sequence()
            for spec in specs:  # on whichever engine it is put
                for engine in range(self.topology.engines):
                    await control.inject(replace(spec, engine_id=engine))
            began_s = time.monotonic()
            load = Load(self.server.url, self.load(guilty, specs[0].request), timeout_s=MOST_FAULTS * SLOWEST_S)
            histories = await load.run()
            took_s = time.monotonic() - began_s
            async with asyncio.timeout(SETTLED_WITHIN_S):
                while await control.unwell() is not None:
                    await asyncio.sleep(0.05)
            return Found(histories, await control.events(before), took_s)


class Found:
    """What came of one load."""

    def __init__(self, histories: list[History], events: list[dict], took_s: float) -> None:
        self.histories, self.events, self.took_s = histories, events, took_s

    def of(self, kind: str) -> list[dict]:
        return [e for e in self.events if e["kind"] == kind]

    @property
    def faults(self) -> int:
        return len(self.of("decision-made"))  # one for a lockstep group

    @property
    def failed(self) -> list[int]:
        return [index for index, history in enumerate(self.histories) if history.error is not None]

    def assert_exact_but(self, expected: list[History], guilty: Sequence[int]) -> None:
        others = [i for i in range(STREAMS) if i not in guilty]
        verdict = compare_runs([expected[i] for i in others], [self.histories[i] for i in others])
        assert verdict.exact, verdict.reasons

    def tell(self, what: str) -> None:
        gap_s = max(max(h.gaps_s(), default=0.0) for h in self.histories)
        print(f"{what}: {self.faults} faults, longest interruption {gap_s:.2f} s, all over in {self.took_s:.1f} s")


@pytest.fixture(
    scope="module",
    params=[(ONE, V1_ASYNC), in_matrix((ONE, V2_ASYNC)), in_matrix((TP2, V1_ASYNC)), in_matrix((MOE_EP, V1_SYNC))],
    ids=served_name,
)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Bench]:
    topology, kind = request.param
    arguments = [*ARGUMENTS, "--standby-workers", "1", "--max-retries", "10"]
    with servers.of(topology, kind, arguments) as server:
        yield Bench(server, topology, kind)
    assert left_behind(server) == []


def poison(name: str, kind: FaultKind = FaultKind.RAISE, **options: object) -> InjectionSpec:
    return InjectionSpec(phase=Phase.FORWARD, kind=kind, times=FOREVER, request=name, **options)  # type: ignore[arg-type]


def assert_ended_alone(bench: Bench, found: Found, guilty: Sequence[int]) -> None:
    found.assert_exact_but(bench.expected(), guilty)
    assert found.failed == list(guilty)
    ended = found.of("request-ended")
    assert len(ended) == len(guilty)
    told = " ".join(str(found.histories[index].error) for index in guilty)
    for event in ended:
        assert event["incident"] in told
    assert run(well(bench.server)) is None


@pytest.mark.parametrize("guilty", [31, in_matrix(0), in_matrix(13)])
def test_one_poison_prompt_among_32_streams_ends_alone(bench: Bench, guilty: int) -> None:
    found = bench.through(poison(f"poison{guilty}"), guilty=[guilty])
    found.tell(f"poison at {guilty}")
    assert_ended_alone(bench, found, [guilty])
    assert found.faults <= MOST_FAULTS


def test_two_at_once_end_and_nobody_else(bench: Bench) -> None:
    found = bench.through(poison("both"), guilty=[4, 21])
    found.tell("two at once")
    assert_ended_alone(bench, found, [4, 21])


@pytest.mark.matrix
def test_one_that_begins_to_poison_in_the_middle_of_its_answer_ends_alone(bench: Bench) -> None:
    found = bench.through(poison("later", after_steps=bench.tokens // 2), guilty=[7])
    found.tell("in the middle of its answer")
    assert_ended_alone(bench, found, [7])
    assert found.faults <= MOST_FAULTS
    got = found.histories[7].token_ids
    assert got == bench.expected()[7].token_ids[: len(got)]


def test_of_a_pair_that_poisons_only_together_everybody_finishes(bench: Bench) -> None:
    found = bench.through(poison("pair", together=2), guilty=[3, 19])
    found.tell("a pair")
    found.assert_exact_but(bench.expected(), [])
    assert found.of("request-ended") == []


def test_one_whose_logits_are_no_numbers_is_named_and_ends_alone(bench: Bench) -> None:
    if bench.tokens != TOKENS:
        pytest.skip("logits of one request are spoilt on runner V1 only")
    found = bench.through(poison("nan", FaultKind.NAN), guilty=[13])
    found.tell("no numbers")
    assert_ended_alone(bench, found, [13])
    assert found.faults <= FAULTS_OF_A_NAMED_ONE


def test_a_client_that_sends_its_poison_again_and_again_costs_one_search(bench: Bench) -> None:
    if bench.tokens != TOKENS:
        pytest.skip("logits of one request are spoilt on runner V1 only")
    expected = bench.expected()

    async def scenario() -> tuple[list[str | None], Found, dict]:
        async with Control(bench.server.url) as control:
            before, salt, began_s = await control.last_sequence(), fresh_salt(), time.monotonic()
            for engine in range(bench.topology.engines):
                await control.inject(replace(poison("again", FaultKind.NAN), engine_id=engine))
            others = asyncio.create_task(Load(bench.server.url, bench.load()).run())
            errors = []
            for number in range(REPETITIONS):
                spec = StreamSpec("again", "And again", max_tokens=8, cache_salt=salt, request_id=f"again-{number}")
                [history] = await Load(bench.server.url, [spec], timeout_s=60).run()
                errors.append(history.error)
            found = Found(await others, await control.events(before), time.monotonic() - began_s)
            status = httpx.get(f"{bench.server.url}/fault_tolerance/status", headers=token_headers(bench.server.url))
            return errors, found, status.json()

    errors, found, status = run(scenario())
    found.tell(f"sent {REPETITIONS} times")
    found.assert_exact_but(expected, [])
    [ended], [remembered] = found.of("request-ended"), found.of("request-remembered")
    assert len(set(errors)) == 1 and ended["incident"] in str(errors[0])
    assert found.faults <= FAULTS_OF_A_NAMED_ONE
    assert {e["decision"]["action"] for e in found.of("decision-made")} == {"retry"}
    [entry] = [r for r in status["remembered"] if r["incident"] == remembered["incident"]]
    assert entry["refused"] and entry["refusals"] >= REPETITIONS // 2


@pytest.mark.parametrize("kind", [FaultKind.KILL, in_matrix(FaultKind.STOP), in_matrix(FaultKind.HANG)])
def test_one_that_takes_the_worker_along_ends_alone(bench: Bench, kind: FaultKind) -> None:
    """By killing, stopping or hanging it: the last is found as late as a stall in a new process is."""
    bench.learn_steps()
    found = bench.through(poison(f"deadly-{kind}", kind), guilty=[11])
    found.tell(f"takes the worker along ({kind})")
    assert_ended_alone(bench, found, [11])
    assert found.faults <= MOST_FAULTS


@pytest.mark.parametrize("kind", [FaultKind.RAISE, in_matrix(FaultKind.KILL)])
def test_the_only_request_there_is_is_compared_with_one_of_our_own_and_ended(bench: Bench, kind: FaultKind) -> None:
    if kind is FaultKind.KILL and bench.topology is not ONE:
        pytest.skip("once is enough")

    async def scenario() -> tuple[list[History], list[dict]]:
        async with Control(bench.server.url) as control:
            before = await control.last_sequence()
            await control.inject(poison(f"lonely-{kind}", kind))
            salt, name = fresh_salt(), f"lonely-{kind}"  # else the second one would be refused as a repetition
            alone = StreamSpec("alone", "The only one", max_tokens=8, cache_salt=salt, request_id=name)
            histories = await Load(bench.server.url, [alone], timeout_s=150).run()
            return histories, await control.events(before)

    [history], events = run(scenario())
    found = Found([history], events, 0.0)
    found.tell(f"the only one ({kind})")
    assert "makes the server fail" in str(history.error)
    assert found.faults <= MOST_FAULTS
    assert run(well(bench.server)) is None


@pytest.mark.matrix
def test_one_that_kills_every_engine_core_that_it_is_given_to_ends_and_everybody_else_is_exact(bench: Bench) -> None:
    if bench.topology is not ONE:
        pytest.skip("once is enough")
    deadly = InjectionSpec(phase=Phase.SCHEDULE_END, kind=FaultKind.KILL, times=FOREVER, request="engine-killer")
    found = bench.through(deadly, guilty=[2])
    found.tell("kills the engine core")
    lost = found.of("engine-lost")
    print(f"engine cores lost: {len(lost)}")
    [ended] = found.of("request-ended")
    assert ended["incident"] in str(found.histories[2].error)
    found.assert_exact_but(bench.expected(), [2])
    assert found.failed == [2]
    assert "makes the server fail" in str(found.histories[2].error)
    assert len(lost) == 4
