"""Which faults are injected where: no rank and no phase is left out, and a soak can be drawn again."""

from __future__ import annotations

import pytest

from holdfast.bench.harms import Harm
from holdfast.bench.scenarios import (
    OF_ONE_RANK,
    STEPS_PER_AGREEMENT,
    choose_scenarios,
    passages,
    random_scenarios,
    scenarios_of,
)
from holdfast.bench.topologies import DP2, MOE, MOE_EP, ONE, TOPOLOGIES, TP2, Topology
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind

INSIDE_A_RECOVERY = {Phase.RECOVERY, Phase.REBUILD, Phase.RESUME}
MANY_RANKS = [topology for topology in TOPOLOGIES if topology.ranks > 1]
WORKER_PHASES = {Phase.STEP_START, Phase.FORWARD, Phase.STEP_END}


def test_one_rank_alone_is_hurt_at_every_phase_of_its_step() -> None:
    """No phase is left out but those inside a recovery, and the agreement of several engines."""
    phases = {scenario.phase for scenario in scenarios_of(ONE)}
    assert phases == set(Phase) - INSIDE_A_RECOVERY - {Phase.DP_SYNC}


@pytest.mark.parametrize("topology", MANY_RANKS, ids=lambda t: t.name)
def test_every_rank_is_hurt_before_in_and_after_its_forward_pass(topology: Topology) -> None:
    """Also in its very first step."""
    for place in topology.places:
        own = [one for one in scenarios_of(topology) if (one.engine_id, one.rank) == place and one.phase.in_worker]
        assert {one.phase for one in own} == WORKER_PHASES
        assert [one.name for one in own if one.share == 0] == ["first step"]


@pytest.mark.parametrize("topology", MANY_RANKS, ids=lambda t: t.name)
def test_only_lockstep_engines_are_hurt_before_their_agreement(topology: Topology) -> None:
    """Each of them; others have no such moment, and a fault armed there would never come."""
    hurt = {one.engine_id for one in scenarios_of(topology) if one.phase is Phase.DP_SYNC}
    assert hurt == (set(range(topology.engines)) if topology.lockstep else set())


def test_agreements_are_rarer_than_steps() -> None:
    """A fault before one comes at about the same moment of the run as one in a step."""
    assert passages(Phase.FORWARD, 80) == 80
    assert passages(Phase.DP_SYNC, 80) == 80 // STEPS_PER_AGREEMENT


def test_scenarios_are_chosen_by_word_or_phase() -> None:
    """A word of the name or the whole phase choose; none chooses all."""
    assert choose_scenarios([ONE], []) == ((ONE, OF_ONE_RANK),)
    [(_, chunked)] = choose_scenarios([ONE], ["chunked"])
    assert [one.name for one in chunked] == ["chunked prefill"]
    [(_, sampled)] = choose_scenarios([ONE], ["sample-end"])
    assert {one.phase for one in sampled} == {Phase.SAMPLE_END}


def test_a_topology_without_a_chosen_scenario_is_left_out() -> None:
    """No server is started for nothing."""
    assert [topology for topology, _ in choose_scenarios([DP2, MOE], ["dp-sync"])] == [MOE]


def test_a_word_in_vain_names_what_there_is() -> None:
    """A misspelt scenario says which there are."""
    with pytest.raises(ValueError, match="chunked prefill"):
        choose_scenarios([ONE], ["chunky"])


def test_a_seed_draws_the_same_faults_again() -> None:
    """And another seed draws others."""
    drawn = random_scenarios(MOE_EP, 50, 7)
    assert drawn == random_scenarios(MOE_EP, 50, 7) != random_scenarios(MOE_EP, 50, 8)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_a_soak_draws_places_and_phases_that_the_topology_has(topology: Topology) -> None:
    """Every rank gets its turn; none is a phase that is never passed."""
    drawn = random_scenarios(topology, 300, 1)
    assert {(one.engine_id, one.rank) for one in drawn} == set(topology.places)
    steps = set(Phase) - INSIDE_A_RECOVERY
    assert {one.phase for one in drawn} == (steps if topology.lockstep else steps - {Phase.DP_SYNC})


def test_an_engine_core_has_no_ranks() -> None:
    """A fault in it is armed for rank 0 whichever rank was drawn."""
    assert {one.rank for one in random_scenarios(TP2, 200, 3) if not one.phase.in_worker} == {0}


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_every_process_is_hurt_in_its_turn(topology: Topology) -> None:
    """Each worker, or each engine core."""
    for harm in (Harm.HANG, Harm.SLOW, Harm.OOM):
        each = scenarios_of(topology, harm)
        assert [(one.engine_id, one.rank) for one in each] == topology.places
        assert {one.injection(200).kind for one in each} == {harm.kind}
    workers, cores = (scenarios_of(topology, harm) for harm in (Harm.KILL_WORKER, Harm.KILL_ENGINE))
    assert [(one.engine_id, one.rank) for one in workers] == topology.places
    assert [one.engine_id for one in cores] == list(range(topology.engines))
    assert {one.injection(200).kind for one in (*workers, *cores)} == {FaultKind.KILL}
    assert all(one.injection(200).kills_engine_core for one in cores)
    assert not any(one.injection(200).kills_engine_core for one in workers)
