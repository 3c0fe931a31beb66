"""The figures that must be reached: which hold for which topology, and when they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.bench.harms import Harm
from holdfast.bench.targets import Measured, targets_of
from holdfast.bench.topologies import DP2, MOE, MOE_EP, ONE, TOPOLOGIES, TP2, Standby, Topology

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
    assert [target.name for target in targets_of(topology, Harm.EXCEPTION, FAST)] == [
        EVERYWHERE[0],
        *more,
        EVERYWHERE[1],
    ]


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_a_bound_is_met_up_to_and_with_itself(topology: Topology) -> None:
    """What is slower by a little misses it."""
    assert all(target.met for target in targets_of(topology, Harm.EXCEPTION, FAST))
    assert not any(target.met for target in targets_of(topology, Harm.EXCEPTION, SLOW))


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: t.name)
def test_what_was_not_measured_is_not_met(topology: Topology) -> None:
    """Silence is no success."""
    assert not any(target.met for target in targets_of(topology, Harm.EXCEPTION, Measured()))


ENGINE_CORE = ["interruption, median", "neighbours' longest gap", "times shorter than a restart"]


@pytest.mark.parametrize(
    ("topology", "standby", "harm", "bounds"),
    [
        (ONE, Standby.NONE, Harm.KILL_WORKER, {"times shorter than a restart": 2.5}),
        (ONE, Standby.PLAIN, Harm.KILL_WORKER, {"interruption, median": 1.5, "times shorter than a restart": 15.0}),
        (ONE, Standby.PRELOADED, Harm.KILL_WORKER, {"interruption, median": 0.8, "times shorter than a restart": 15.0}),
        (TP2, Standby.PLAIN, Harm.KILL_WORKER, {"interruption, median": 3.0}),
        (MOE, Standby.PRELOADED, Harm.KILL_WORKER, {"interruption, median": 3.0}),
        (MOE, Standby.NONE, Harm.KILL_WORKER, {}),
        (DP2, Standby.NONE, Harm.KILL_ENGINE, dict(zip(ENGINE_CORE, (0.3, None, 100.0), strict=True))),
        (ONE, Standby.NONE, Harm.KILL_ENGINE, {}),
        (ONE, Standby.NONE, Harm.POISON, {"faults until it was ended, max": 7.0}),
    ],
    ids=str,
)
def test_a_killed_process_has_bounds_of_its_own(
    topology: Topology, standby: Standby, harm: Harm, bounds: dict[str, float | None]
) -> None:
    """Targets depend on the standby, and are absent where nothing was promised."""
    targets = targets_of(replace(topology, standby=standby), harm, Measured())
    assert {target.name: target.bound for target in targets} == bounds
