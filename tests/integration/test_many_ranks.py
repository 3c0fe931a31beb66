"""A fault on any rank of any topology: its lockstep group pauses, rebuilds, goes on; every token is right."""

from __future__ import annotations

import pytest

from holdfast.bench.topologies import DP2, MOE, MOE_EP, ONE, PP2, TP2
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.control import RECOVERED
from holdfast.chaos.history import History
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.many_ranks import Bench, injected
from integration.helpers.servers import V1_ASYNC, V1_SYNC, Servers, in_matrix, served_name

pytestmark = [pytest.mark.host, pytest.mark.server]

RANK_PHASES = [Phase.STEP_START, Phase.FORWARD, Phase.STEP_END, Phase.SAMPLE_END]
PAUSED = "engine-paused"
# Stages schedule asynchronously only under the other model runner: the host refuses it under this one.
MANY = [(TP2, V1_ASYNC), (PP2, V1_SYNC), (DP2, V1_SYNC), (MOE_EP, V1_SYNC)]
REST = [(TP2, V1_SYNC), (DP2, V1_ASYNC), (MOE, V1_SYNC), (MOE, V1_ASYNC), (MOE_EP, V1_ASYNC)]


@pytest.fixture(params=[*MANY, *(in_matrix(pair) for pair in REST)], ids=served_name)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Bench:
    return Bench(servers, *request.param)


def assert_exact(expected: list[History], found: list[History]) -> None:
    verdict = compare_runs(expected, found)
    assert verdict.exact, verdict.reasons


def places_and_phases(faults: list[dict]) -> set[tuple[int, int | None, str]]:
    return {(fault["engine_id"], fault["rank"], fault["phase"]) for fault in faults}


def test_its_tokens_are_those_of_one_rank(bench: Bench) -> None:
    """On the CPU; a mixture of experts is compared in `test_cpu_topologies`."""
    if bench.topology.model != "dense":
        pytest.skip("the shared server of one rank has the dense model")
    expected = bench.servers.reference(ONE, bench.kind, bench.asks)
    assert_exact(expected, bench.servers.reference(bench.topology, bench.kind, bench.asks))


@pytest.mark.parametrize("place", [0, 1])
def test_faults_in_every_phase_of_any_rank_are_reported_with_their_own_cause_and_change_no_token(
    bench: Bench, place: int
) -> None:
    """One after the other in one load, the first of them in the very first step."""
    engine, rank = bench.topology.places[place]
    phases = [Phase.FORWARD, *RANK_PHASES]
    events = bench.assert_exact_through(
        *(InjectionSpec(phase=p, engine_id=engine, rank=rank, after_steps=15 * n) for n, p in enumerate(phases))
    )
    assert places_and_phases(injected(events)) == {(engine, rank, phase) for phase in RANK_PHASES}
    assert len(injected(events)) == len(phases)


@pytest.mark.parametrize("engine", [0, 1])
def test_faults_in_every_phase_of_any_engine_core_change_no_token(bench: Bench, engine: int) -> None:
    if engine >= bench.topology.engines:
        pytest.skip("there is one engine only")
    phases = [Phase.SCHEDULE_END, Phase.OUTPUT_REQUEST]
    faults = [InjectionSpec(phase=p, engine_id=engine, after_steps=20 * n) for n, p in enumerate(phases, 1)]
    if bench.topology.lockstep:
        faults.append(InjectionSpec(phase=Phase.DP_SYNC, engine_id=engine, after_steps=2))
    events = bench.assert_exact_through(*faults)
    assert len(injected(events)) == len(faults)


def test_faults_on_two_ranks_at_once_change_no_token(bench: Bench) -> None:
    bench.assert_exact_through(
        *(InjectionSpec(phase=Phase.FORWARD, engine_id=e, rank=r, after_steps=30) for e, r in bench.topology.places)
    )


@pytest.mark.parametrize("place", [0, 1])
def test_faults_in_every_part_of_a_recovery_change_no_token(bench: Bench, place: int) -> None:
    """Each in the recovery that was to repair the one before it."""
    engine, rank = bench.topology.places[place]
    first = InjectionSpec(phase=Phase.FORWARD, engine_id=engine, rank=rank, after_steps=30)
    inside = [Phase.RECOVERY, Phase.REBUILD, Phase.RESUME]
    events = bench.assert_exact_through(first, *(InjectionSpec(phase=p, engine_id=engine, rank=rank) for p in inside))
    assert len([e for e in events if e["kind"] == "recovery-failed" and e["engine_id"] == engine]) >= len(inside)


def test_exactly_the_lockstep_group_pauses(bench: Bench) -> None:
    engine, rank = bench.topology.places[1]
    injection = InjectionSpec(phase=Phase.FORWARD, engine_id=engine, rank=rank, after_steps=30)
    events = bench.assert_exact_through(injection)
    group = set(range(bench.topology.engines)) if bench.topology.lockstep else {engine}
    for kind in (PAUSED, RECOVERED):
        assert {e["engine_id"] for e in events if e["kind"] == kind} == group
