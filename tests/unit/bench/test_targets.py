"""The figures that must be reached: which hold for which topology, and when they are."""

from __future__ import annotations

import pytest

from holdfast.bench.targets import Measured, targets_of
from holdfast.bench.topologies import DP2, MOE_EP, ONE, TOPOLOGIES, TP2, Topology

FAST = Measured(
    paused_median_s=0.1,
    interruption_median_s=0.6,
    interruption_max_s=1.2,
    times_shorter=30.0,
    neighbour_gap_s=0.02,
    neighbour_bound_s=0.02,
)
SLOW = Measured(
    paused_median_s=0.11,
    interruption_median_s=0.91,
    interruption_max_s=1.21,
    times_shorter=29.9,
    neighbour_gap_s=0.03,
    neighbour_bound_s=0.02,
)
EVERYWHERE = ["pause, median", "times shorter than a restart"]


@pytest.mark.parametrize(
    ("topology", "more"),
    [
        (ONE, []),
        (TP2, ["interruption, median"]),
        (DP2, ["neighbours' longest gap"]),
        (MOE_EP, ["interruption, median", "interruption, max"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_each_topology_has_its_bounds(topology: Topology, more: list[str]) -> None:
    """Some hold everywhere."""
    assert [target.name for target in targets_of(topology, FAST)] == [EVERYWHERE[0], *more, EVERYWHERE[1]]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_a_bound_is_met_up_to_and_with_itself(topology: Topology) -> None:
    """What is slower by a little misses it."""
    assert all(target.met for target in targets_of(topology, FAST))
    assert not any(target.met for target in targets_of(topology, SLOW))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_what_was_not_measured_is_not_met(topology: Topology) -> None:
    """Silence is no success."""
    assert not any(target.met for target in targets_of(topology, Measured()))
