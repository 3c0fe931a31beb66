"""Topologies of tests and benchmarks: one small model spread over ranks.

Pure data. Every topology gives the same answers as its `one_rank` form.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Literal

ModelKind = Literal["dense", "moe"]


class Standby(enum.StrEnum):
    """Whether each engine core keeps a worker ready for a dead rank's place."""

    NONE = "none"
    PLAIN = "plain"  # everything imported
    PRELOADED = "preloaded"  # the weights read as well

    def arguments(self, ranks: int) -> tuple[str, ...]:
        """Return the flags for an engine core with that many ranks: a preloaded standby fits a single rank."""
        if self is Standby.PRELOADED:
            return ("--standby-workers", str(ranks), "--standby-preload")
        return () if self is Standby.NONE else ("--standby-workers", "1")


@dataclass(frozen=True)
class Topology:
    """Engines with equal numbers of ranks. In lockstep, engines share collectives and step together."""

    name: str
    model: ModelKind = "dense"
    arguments: tuple[str, ...] = ()
    engines: int = 1
    ranks_per_engine: int = 1
    lockstep: bool = False
    standby: Standby = Standby.NONE

    @property
    def label(self) -> str:
        """Return the name, with the kind of standby if there is any."""
        return self.name if self.standby is Standby.NONE else f"{self.name}, {self.standby} standby"

    @property
    def ranks(self) -> int:
        """Return the number of ranks of all engines."""
        return self.engines * self.ranks_per_engine

    @property
    def places(self) -> list[tuple[int, int]]:
        """Return engine id and rank within the engine, of every rank."""
        return [(engine, rank) for engine in range(self.engines) for rank in range(self.ranks_per_engine)]

    def lockstep_group(self, engine_id: int) -> frozenset[int]:
        """Return the engines that pause together with an engine."""
        return frozenset(range(self.engines)) if self.lockstep else frozenset({engine_id})


_DP2 = ("--data-parallel-size", "2")

ONE = Topology("one")
TP2 = Topology("tp2", arguments=("--tensor-parallel-size", "2"), ranks_per_engine=2)
PP2 = Topology("pp2", arguments=("--pipeline-parallel-size", "2"), ranks_per_engine=2)
DP2 = Topology("dp2", arguments=_DP2, engines=2)
# Without expert parallel each rank holds a slice of every expert; with it, half of the experts, whole.
MOE = Topology("moe", "moe", _DP2, engines=2, lockstep=True)
MOE_EP = Topology("moe-ep", "moe", (*_DP2, "--enable-expert-parallel"), engines=2, lockstep=True)

TOPOLOGIES: tuple[Topology, ...] = (ONE, TP2, PP2, DP2, MOE, MOE_EP)


def one_rank(topology: Topology) -> Topology:
    """Return the same model on a single rank, without parallel arguments."""
    return replace(topology, name=f"one-{topology.model}", arguments=(), engines=1, ranks_per_engine=1, lockstep=False)


def topology_named(name: str) -> Topology:
    """Return a topology by name. Raises `KeyError` for an unknown name."""
    return {topology.name: topology for topology in TOPOLOGIES}[name]
