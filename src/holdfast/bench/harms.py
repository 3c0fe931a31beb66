"""What the demo and the benchmarks can do to a server: raise in it, or kill one of its processes. Pure data."""

from __future__ import annotations

import enum

from holdfast.bench.topologies import DP2, ONE, Topology
from holdfast.core.faults import Phase
from holdfast.core.injection import FaultKind


class Harm(enum.StrEnum):
    """What hurts it."""

    EXCEPTION = "exception"
    KILL_WORKER = "kill-worker"
    KILL_ENGINE = "kill-engine"

    @property
    def kind(self) -> FaultKind:
        return FaultKind.RAISE if self is Harm.EXCEPTION else FaultKind.KILL

    @property
    def victim(self) -> str:
        """Which process is hurt, in words."""
        return "engine core" if self is Harm.KILL_ENGINE else "worker"

    @property
    def usual_topology(self) -> Topology:
        """Where it is seen best: a lost engine core has a sibling that takes its answers."""
        return DP2 if self is Harm.KILL_ENGINE else ONE

    @property
    def usual_phase(self) -> Phase:
        return Phase.SCHEDULE_END if self is Harm.KILL_ENGINE else Phase.FORWARD

    def happens_at(self, phase: Phase) -> bool:
        """Whether the process that passes a phase is the one to hurt."""
        return self is Harm.EXCEPTION or phase.in_worker is (self is Harm.KILL_WORKER)
