"""Facts that the machine of an engine core is told, beside the messages of client and workers. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall


@dataclass(frozen=True)
class HostAttached:
    """The engine core is complete. `in_lockstep`: peer engine cores wait in collectives for the engine core."""

    in_lockstep: bool


@dataclass(frozen=True)
class JoinAwaited:
    """The busy loop pauses before the first step, until the engine core has joined the lockstep group."""


@dataclass(frozen=True)
class StepRaised:
    """The busy loop ended with an error.

    `is_interrupt`: the busy loop was only told to pause. `is_workers_reply`: the error repeats the text of what a
    worker raised.
    """

    error: Exception
    is_interrupt: bool
    is_workers_reply: bool


@dataclass(frozen=True)
class WorkersChecked:
    """Answer to `CheckWorkers`."""

    lost_ranks: tuple[int, ...]


@dataclass(frozen=True)
class FaultStudied:
    """Answer to `StudyFault`."""


@dataclass(frozen=True)
class RecoveryFinished:
    """Answer to `RunRecovery`: the busy loop may run again."""

    report: m.RecoveryReport


@dataclass(frozen=True)
class RecoveryFailed:
    """Answer to `RunRecovery`: the recovery raised."""

    error: Exception
    lost_ranks: tuple[int, ...]


@dataclass(frozen=True)
class RankLost:
    """The process of a rank ended; `how` in words, for people. The end of an old process changes nothing."""

    rank: int
    pid: int
    how: str
    exit_code: int | None = None


@dataclass(frozen=True)
class RanksStarted:
    """New processes of ranks were started: process ids by rank. The processes before have ended."""

    pids: Mapping[int, int]


@dataclass(frozen=True)
class RanksReturned:
    """Ranks that were lost with their node are there again, with the same processes: process ids by rank."""

    pids: Mapping[int, int]


@dataclass(frozen=True)
class StallsSeen:
    """An observation of the ranks. `is_rebuildable`: the engine core's own collectives can be rebuilt."""

    stalls: tuple[Stall, ...]
    is_rebuildable: bool


@dataclass(frozen=True)
class EvidenceKept:
    """Answer to `KeepEvidence`: the evidence is written, or could not be written."""

    stall: Stall


@dataclass(frozen=True)
class ArmingUndelivered:
    """A rank did not accept an `ArmRank` command."""

    command: m.ArmWorkerFault


@dataclass(frozen=True)
class TimePassed:
    """A moment at which nothing else happened. Due at `EngineCoreMachine.wakes_at`, at the latest."""


BusyLoopFact = JoinAwaited | StepRaised | WorkersChecked | FaultStudied | RecoveryFinished | RecoveryFailed
RankFact = RankLost | RanksStarted | RanksReturned | StallsSeen | EvidenceKept | ArmingUndelivered
ShellFact = HostAttached | RankFact | TimePassed
Fact = BusyLoopFact | ShellFact | m.FromWorker | m.ToEngine
