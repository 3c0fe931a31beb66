"""A fault on any rank of any topology: its lockstep group pauses, rebuilds, goes on; every token is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from holdfast.bench.topologies import DP2, MOE, MOE_EP, PP2, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import FAULT, RECOVERED, Control
from holdfast.chaos.history import History
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec
from integration.conftest import V1_ASYNC, V1_SYNC, Kind, Servers, run
from integration.loads import every_feature, fresh_salt

pytestmark = [pytest.mark.host, pytest.mark.server]

RANK_PHASES = [Phase.STEP_START, Phase.FORWARD, Phase.STEP_END, Phase.SAMPLE_END]
PAUSED = "engine-paused"


@dataclass
class Bench:
    """One server of a topology and its fault-free run."""

    server: Server
    topology: Topology
    kind: Kind
    asks: Callable[[str], list[StreamSpec]] = every_feature
    _expected: list[History] = field(default_factory=list)

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(e, r) for e in range(self.topology.engines) for r in range(self.topology.ranks_per_engine)]

    def expected(self) -> list[History]:
        if not self._expected:
            self._expected = run(Load(self.server.url, self.asks(fresh_salt())).run())
        return self._expected

    def assert_exact_through(self, *injections: InjectionSpec) -> list[dict]:
        """A load through faults, then once more into what they left in the prefix cache; the events."""
        expected, salt = self.expected(), fresh_salt()
        found, events = run(self._through(salt, injections))
        assert_exact(expected, found)
        assert_exact(expected, run(Load(self.server.url, self.asks(salt)).run()))
        return events

    async def _through(self, salt: str, injections: tuple[InjectionSpec, ...]) -> tuple[list[History], list[dict]]:
        async with Control(self.server.url) as control:
            before = await control.last_sequence()
            for injection in injections:
                await control.inject(injection)
            histories = await Load(self.server.url, self.asks(salt)).run()
            events = await control.wait_recovered(before, faults=1)
            assert await control.unwell() is None
        return histories, events


# Stages schedule asynchronously only under the other model runner: the host refuses it under this one.
MANY = [(t, k) for t in (TP2, PP2, DP2, MOE, MOE_EP) for k in (V1_SYNC, V1_ASYNC) if (t, k) != (PP2, V1_ASYNC)]


@pytest.fixture(scope="module", params=MANY, ids=lambda p: f"{p[0].name}-{p[1].name}")
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Bench]:
    topology, kind = request.param
    with servers.of(topology, kind) as server:
        yield Bench(server, topology, kind)


def assert_exact(expected: list[History], found: list[History]) -> None:
    verdict = compare_runs(expected, found)
    assert verdict.exact, verdict.reasons


def injected(events: list[dict]) -> list[dict]:
    """The faults that were reported with their own cause."""
    return [e["fault"] for e in events if e["kind"] == FAULT and e["fault"]["error_type"] == "InjectedFault"]


@pytest.mark.parametrize("phase", RANK_PHASES)
@pytest.mark.parametrize("place", [0, 1])
def test_a_fault_on_any_rank_is_reported_with_its_own_cause_and_changes_no_token(
    bench: Bench, place: int, phase: Phase
) -> None:
    engine, rank = bench.places[place]
    events = bench.assert_exact_through(InjectionSpec(phase=phase, engine_id=engine, rank=rank, after_steps=30))
    [fault] = injected(events)
    assert (fault["engine_id"], fault["rank"], fault["phase"]) == (engine, rank, phase)


@pytest.mark.parametrize("place", [0, 1])
def test_a_fault_in_the_very_first_step_changes_no_token(bench: Bench, place: int) -> None:
    engine, rank = bench.places[place]
    events = bench.assert_exact_through(InjectionSpec(phase=Phase.FORWARD, engine_id=engine, rank=rank))
    assert injected(events)


@pytest.mark.parametrize("phase", [Phase.SCHEDULE_END, Phase.OUTPUT_REQUEST, Phase.DP_SYNC])
@pytest.mark.parametrize("engine", [0, 1])
def test_a_fault_in_any_engine_core_changes_no_token(bench: Bench, engine: int, phase: Phase) -> None:
    if engine >= bench.topology.engines or (phase is Phase.DP_SYNC and not bench.topology.lockstep):
        pytest.skip("this topology has no such engine, or no such phase")
    after = 2 if phase is Phase.DP_SYNC else 30
    assert injected(bench.assert_exact_through(InjectionSpec(phase=phase, engine_id=engine, after_steps=after)))


def test_faults_on_two_ranks_at_once_change_no_token(bench: Bench) -> None:
    bench.assert_exact_through(
        *(InjectionSpec(phase=Phase.FORWARD, engine_id=e, rank=r, after_steps=30) for e, r in bench.places)
    )


@pytest.mark.parametrize("phase", [Phase.RECOVERY, Phase.REBUILD, Phase.RESUME])
@pytest.mark.parametrize("place", [0, 1])
def test_a_fault_inside_the_recovery_changes_no_token(bench: Bench, place: int, phase: Phase) -> None:
    engine, rank = bench.places[place]
    first = InjectionSpec(phase=Phase.FORWARD, engine_id=engine, rank=rank, after_steps=30)
    events = bench.assert_exact_through(first, InjectionSpec(phase=phase, engine_id=engine, rank=rank))
    assert [e for e in events if e["kind"] == "recovery-failed"]


def test_exactly_the_lockstep_group_pauses(bench: Bench) -> None:
    engine, rank = bench.places[1]
    injection = InjectionSpec(phase=Phase.FORWARD, engine_id=engine, rank=rank, after_steps=30)
    events = bench.assert_exact_through(injection)
    group = set(range(bench.topology.engines)) if bench.topology.lockstep else {engine}
    for kind in (PAUSED, RECOVERED):
        assert {e["engine_id"] for e in events if e["kind"] == kind} == group
