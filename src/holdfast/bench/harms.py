"""Faults that the demo and the benchmarks can inject: an exception, a kill, a stall, a poison request. Pure data."""

from __future__ import annotations

import enum
import itertools

from holdfast.bench.topologies import DP2, ONE, Topology
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import MAX_TIMES, FaultKind, InjectionSpec

_poisons = itertools.count(1)  # unique names: earlier injections stay armed


class Harm(enum.StrEnum):
    """A fault that the demo or a benchmark injects."""

    EXCEPTION = "exception"
    OOM = "oom"
    KILL_WORKER = "kill-worker"
    KILL_ENGINE = "kill-engine"
    STOP = "stop"
    HANG = "hang"
    SPIN = "spin"
    DEADLOCK = "deadlock"
    SLOW = "slow"
    POISON = "poison"

    @property
    def kind(self) -> FaultKind:
        return _KINDS.get(self) or FaultKind(self.value)

    @property
    def victim(self) -> str:
        """Name the kind of process that the fault hits."""
        return "engine core" if self is Harm.KILL_ENGINE else "worker"

    @property
    def in_words(self) -> str:
        """Describe a single occurrence."""
        return _IN_WORDS[self]

    @property
    def heading(self) -> str:
        """Describe the fault as the heading of a table."""
        return _HEADINGS[self]

    @property
    def usual_topology(self) -> Topology:
        """Return the topology that shows the fault best: a lost engine core needs a sibling."""
        return DP2 if self is Harm.KILL_ENGINE else ONE

    @property
    def usual_phase(self) -> Phase:
        return Phase.SCHEDULE_END if self is Harm.KILL_ENGINE else Phase.FORWARD

    def injection(self, phase: Phase, engine_id: int, rank: int, after_steps: int) -> InjectionSpec:
        """Build the injection, to be armed before the load.

        A poison request is named in its injection and makes every step fail until the request ends.
        """
        poison = {"request": f"poison-{next(_poisons)}-", "times": MAX_TIMES} if self is Harm.POISON else {}
        return InjectionSpec(
            phase=phase,
            kind=self.kind,
            engine_id=engine_id,
            rank=rank,
            after_steps=after_steps,
            **poison,  # type: ignore[arg-type]
        )

    def happens_at(self, phase: Phase) -> bool:
        """Return whether the process that passes a phase is the process to hit."""
        return self is Harm.EXCEPTION or phase.in_worker is (self is not Harm.KILL_ENGINE)


_KINDS = {
    Harm.EXCEPTION: FaultKind.RAISE,
    Harm.POISON: FaultKind.RAISE,
    Harm.KILL_WORKER: FaultKind.KILL,
    Harm.KILL_ENGINE: FaultKind.KILL,
}
_IN_WORDS = {
    Harm.EXCEPTION: "an exception",
    Harm.OOM: "a device out of memory",
    Harm.KILL_WORKER: "a killed worker",
    Harm.KILL_ENGINE: "a killed engine core",
    Harm.STOP: "a stopped worker",
    Harm.HANG: "a hanging worker",
    Harm.SPIN: "a worker in an endless loop",
    Harm.DEADLOCK: "a deadlocked worker",
    Harm.SLOW: "a step that takes half a second longer",
    Harm.POISON: "a request that makes every step fail",
}
_HEADINGS = {
    Harm.EXCEPTION: "exceptions",
    Harm.OOM: "a device out of memory",
    Harm.KILL_WORKER: "a worker killed",
    Harm.KILL_ENGINE: "an engine core killed",
    Harm.STOP: "a worker stopped",
    Harm.HANG: "a worker hanging",
    Harm.SPIN: "a worker in an endless loop",
    Harm.DEADLOCK: "a worker deadlocked",
    Harm.SLOW: "steps that take half a second longer",
    Harm.POISON: "a poison request",
}
