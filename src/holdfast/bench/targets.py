"""The targets of recovery, and whether a topology meets them. Pure.

Laws are not targets: a broken law is a problem of its run, at any speed.
"""

from __future__ import annotations

import msgspec

from holdfast.bench.harms import Harm
from holdfast.bench.topologies import DP2, MOE, MOE_EP, ONE, TOPOLOGIES, TP2, Standby, Topology

TIMES_SHORTER_NAME = "times shorter than a restart"
FAULTS_NAME = "faults until it was ended, max"


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """The targets of a measurement; None: no target. Seconds, multiples of a restart, or numbers of faults."""

    paused_median_s: float | None = None
    interruption_median_s: float | None = None
    interruption_max_s: float | None = None
    spares_neighbours: bool = False
    times_shorter: float | None = None
    faults_max: float | None = None


def _exceptions(**more: float | bool) -> Bounds:
    return Bounds(paused_median_s=0.1, times_shorter=30.0, **more)  # type: ignore[arg-type]


_EXCEPTIONS = {
    TP2.name: _exceptions(interruption_median_s=0.9),
    DP2.name: _exceptions(spares_neighbours=True),
    MOE_EP.name: _exceptions(interruption_median_s=0.6, interruption_max_s=1.2),
}
_COLD_WORKERS = {ONE.name: Bounds(times_shorter=2.5)}
_STANDBYS = {name: Bounds(interruption_median_s=3.0) for name in (TP2.name, MOE.name, MOE_EP.name)}
# A silence has to be noticed first.
_SILENCES: dict[Standby, dict[str, Bounds]] = {
    Standby.NONE: {},
    Standby.PLAIN: {},
    Standby.PRELOADED: {one.name: Bounds(interruption_max_s=4.0) for one in TOPOLOGIES},
}
_WORKERS = {
    Standby.NONE: _COLD_WORKERS,
    Standby.PLAIN: {**_STANDBYS, ONE.name: Bounds(interruption_median_s=1.5, times_shorter=15.0)},
    Standby.PRELOADED: {**_STANDBYS, ONE.name: Bounds(interruption_median_s=0.8, times_shorter=15.0)},
}
_ENGINE_CORES = {DP2.name: Bounds(interruption_median_s=0.3, spares_neighbours=True, times_shorter=100.0)}


def bounds_of(topology: Topology, harm: Harm) -> Bounds:
    """Return the targets of a topology under a kind of fault."""
    if harm is Harm.KILL_WORKER:
        return _WORKERS[topology.standby].get(topology.name, Bounds())
    if harm is Harm.KILL_ENGINE:
        return _ENGINE_CORES.get(topology.name, Bounds())
    if harm.kind.is_silent:
        return _SILENCES[topology.standby].get(topology.name, Bounds())
    if harm is Harm.POISON:
        return Bounds(faults_max=7.0)
    if harm is Harm.SLOW:
        return Bounds()
    return _EXCEPTIONS.get(topology.name, _exceptions())


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The figures to compare with the targets; None: not measured.

    `neighbour_gap_s` is the longest gap of a neighbour's stream in the median run, `neighbour_bound_s` the 99.9th
    percentile of the gaps without a fault; the gap of a single run exceeds that by chance now and then.
    """

    paused_median_s: float | None = None
    interruption_median_s: float | None = None
    interruption_max_s: float | None = None
    times_shorter: float | None = None
    faults_max: float | None = None
    neighbour_gap_s: float | None = None
    neighbour_bound_s: float | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A target with the measured figure: seconds, or the unit in the name. A figure that is not measured misses."""

    name: str
    bound: float | None
    found: float | None
    met: bool


def targets_of(topology: Topology, harm: Harm, measured: Measured) -> tuple[Target, ...]:
    """Return every target of a topology under a kind of fault, with the measured figure."""
    bounds = bounds_of(topology, harm)
    at_most = (
        ("pause, median", bounds.paused_median_s, measured.paused_median_s),
        ("interruption, median", bounds.interruption_median_s, measured.interruption_median_s),
        ("interruption, max", bounds.interruption_max_s, measured.interruption_max_s),
        (FAULTS_NAME, bounds.faults_max, measured.faults_max),
    )
    targets = [_at_most(name, bound, found) for name, bound, found in at_most if bound is not None]
    if bounds.spares_neighbours:
        targets.append(_at_most("neighbours' longest gap", measured.neighbour_bound_s, measured.neighbour_gap_s))
    if bounds.times_shorter is not None:
        targets.append(_at_least(TIMES_SHORTER_NAME, bounds.times_shorter, measured.times_shorter))
    return tuple(targets)


def is_counted(name: str) -> bool:
    """Return whether the figures of a target are plain numbers instead of seconds."""
    return name in {TIMES_SHORTER_NAME, FAULTS_NAME}


def _at_most(name: str, bound: float | None, found: float | None) -> Target:
    met = found is not None and bound is not None and found <= bound
    return Target(name=name, bound=bound, found=found, met=met)


def _at_least(name: str, bound: float, found: float | None) -> Target:
    return Target(name=name, bound=bound, found=found, met=found is not None and found >= bound)
