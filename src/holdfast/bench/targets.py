"""The figures that recovery must reach, and whether a topology's do. Pure.

Laws are not here: what breaks one is a trial's problem, however fast it was.
"""

from __future__ import annotations

import msgspec

from holdfast.bench.topologies import DP2, MOE_EP, TP2, Topology

PAUSED_MEDIAN_S = 0.1
TIMES_SHORTER = 30.0  # than a full restart, in the median
TIMES_SHORTER_NAME = "times shorter than a restart"
INTERRUPTION_MEDIAN_S = {TP2.name: 0.9, MOE_EP.name: 0.6}
INTERRUPTION_MAX_S = {MOE_EP.name: 1.2}
WITH_NEIGHBOURS = frozenset({DP2.name})


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the bounds are held against; None for what was not measured.

    `neighbour_gap_s` is the longest gap of a neighbour's stream in the median trial, `neighbour_bound_s` what 99.9 %
    of its fault-free gaps do not exceed: in a single trial a gap is above that by chance now and then.
    """

    paused_median_s: float | None = None
    interruption_median_s: float | None = None
    interruption_max_s: float | None = None
    times_shorter: float | None = None
    neighbour_gap_s: float | None = None
    neighbour_bound_s: float | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One bound and what was found: seconds, or how many times shorter. What was not measured is not met."""

    name: str
    bound: float | None
    found: float | None
    met: bool


def targets_of(topology: Topology, measured: Measured) -> tuple[Target, ...]:
    """Every bound that holds for a topology, with what was found."""
    name = topology.name
    targets = [_at_most("pause, median", PAUSED_MEDIAN_S, measured.paused_median_s)]
    if (bound_s := INTERRUPTION_MEDIAN_S.get(name)) is not None:
        targets.append(_at_most("interruption, median", bound_s, measured.interruption_median_s))
    if (bound_s := INTERRUPTION_MAX_S.get(name)) is not None:
        targets.append(_at_most("interruption, max", bound_s, measured.interruption_max_s))
    if name in WITH_NEIGHBOURS:
        targets.append(_at_most("neighbours' longest gap", measured.neighbour_bound_s, measured.neighbour_gap_s))
    return (*targets, _at_least(TIMES_SHORTER_NAME, TIMES_SHORTER, measured.times_shorter))


def _at_most(name: str, bound_s: float | None, found_s: float | None) -> Target:
    met = found_s is not None and bound_s is not None and found_s <= bound_s
    return Target(name=name, bound=bound_s, found=found_s, met=met)


def _at_least(name: str, bound: float, found: float | None) -> Target:
    return Target(name=name, bound=bound, found=found, met=found is not None and found >= bound)
