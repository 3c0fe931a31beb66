"""The topologies are told apart by their names and compared with one rank of the same model."""

from __future__ import annotations

import pytest

from holdfast.bench.topologies import MOE_EP, ONE, TOPOLOGIES, TP2, Standby, Topology, one_rank, topology_named


def test_names_are_unique() -> None:
    names = [topology.name for topology in TOPOLOGIES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_a_topology_is_found_by_its_name(topology: Topology) -> None:
    assert topology_named(topology.name) is topology


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_the_comparison_runs_the_same_model_on_one_rank(topology: Topology) -> None:
    alone = one_rank(topology)
    assert (alone.model, alone.ranks, alone.arguments, alone.lockstep) == (topology.model, 1, (), False)


def test_topologies_of_one_model_share_their_comparison() -> None:
    """One reference run serves them all."""
    assert one_rank(TP2) == one_rank(ONE) != one_rank(MOE_EP)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_only_engines_of_a_mixture_of_experts_run_in_lockstep(topology: Topology) -> None:
    """Dense data-parallel engines share no collectives."""
    assert topology.lockstep == (topology.model == "moe" and topology.engines > 1)


@pytest.mark.parametrize(
    ("standby", "arguments"),
    [
        (Standby.NONE, ()),
        (Standby.PLAIN, ("--standby-workers", "1")),
        (Standby.PRELOADED, ("--standby-workers", "2", "--standby-preload")),
    ],
)
def test_every_rank_has_a_standby_that_fits(standby: Standby, arguments: tuple[str, ...]) -> None:
    """One that has read a rank's weights can become no other."""
    assert standby.arguments(TP2.ranks_per_engine) == arguments
