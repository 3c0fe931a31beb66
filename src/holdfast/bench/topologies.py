"""The ways to spread one small model over ranks that tests and benchmarks run.

Pure data. Each answers like one rank alone; `one_rank` says how to start that one for a comparison token by token.
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
        """Flags of an engine core with so many ranks: whoever has read one rank's weights can become no other."""
        if self is Standby.PRELOADED:
            return ("--standby-workers", str(ranks), "--standby-preload")
        return () if self is Standby.NONE else ("--standby-workers", "1")


@dataclass(frozen=True)
class Topology:
    """Engines of some ranks each. In lockstep, engines share collectives: none can step without the others."""

    name: str
    model: ModelKind = "dense"
    arguments: tuple[str, ...] = ()
    engines: int = 1
    ranks_per_engine: int = 1
    lockstep: bool = False
    standby: Standby = Standby.NONE

    @property
    def label(self) -> str:
        """Its name, with what stands ready where something does."""
        return self.name if self.standby is Standby.NONE else f"{self.name}, {self.standby} standby"

    @property
    def ranks(self) -> int:
        return self.engines * self.ranks_per_engine

    @property
    def places(self) -> list[tuple[int, int]]:
        """Engine and rank within it, of every rank."""
        return [(engine, rank) for engine in range(self.engines) for rank in range(self.ranks_per_engine)]

    def lockstep_group(self, engine_id: int) -> frozenset[int]:
        """The engines that pause when one does."""
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
    """The same model on one rank: whoever has no parallel arguments has one."""
    return replace(topology, name=f"one-{topology.model}", arguments=(), engines=1, ranks_per_engine=1, lockstep=False)


def topology_named(name: str) -> Topology:
    """The topology of that name. Raises `KeyError` where there is none."""
    return {topology.name: topology for topology in TOPOLOGIES}[name]
