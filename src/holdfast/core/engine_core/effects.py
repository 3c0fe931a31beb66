"""Effects that the machine of an engine core asks for, in order. Pure data.

Tasks are effects for the thread of the busy loop, which waits for tasks while the engine core is paused.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall

# ---- tasks of the paused busy loop's thread


@dataclass(frozen=True)
class CheckWorkers:
    """Find out whether a worker process is lost; answer with `WorkersChecked`."""


@dataclass(frozen=True)
class StudyFault:
    """Learn from the fault which requests are suspected, before requests are rewound; answer with `FaultStudied`."""

    fault: Fault | None


@dataclass(frozen=True)
class AnnouncePause:
    """Tell the client that the busy loop is paused and waits for a command."""

    epoch: int
    fault: Fault | None
    broken: bool


@dataclass(frozen=True)
class RunRecovery:
    """Recover under the epoch of the command; answer with `RecoveryFinished` or `RecoveryFailed`."""

    command: m.RecoverEngine


@dataclass(frozen=True)
class EndBusyLoop:
    """End the engine core."""

    reason: str


Task = CheckWorkers | StudyFault | AnnouncePause | RunRecovery | EndBusyLoop


# ---- effects


@dataclass(frozen=True)
class Release:
    """Hand a task to the thread of the busy loop."""

    task: Task


@dataclass(frozen=True)
class SendToClient:
    message: m.FromEngine


@dataclass(frozen=True)
class SendToRank:
    rank: int
    message: m.ToWorker


@dataclass(frozen=True)
class ArmRank:
    """Send the command to the rank; answer with `ArmingUndelivered` when the rank is not reached."""

    command: m.ArmWorkerFault


@dataclass(frozen=True)
class ArmEngineCore:
    spec: InjectionSpec


@dataclass(frozen=True)
class BreakOwnCollectives:
    """Break the engine core's own collectives of the present epoch."""


@dataclass(frozen=True)
class InterruptBusyLoop:
    """End the busy loop at the next step boundary. Void once a recovery has begun."""


@dataclass(frozen=True)
class KillRank:
    rank: int


@dataclass(frozen=True)
class KeepEvidence:
    """Write down a stall before the process is killed; answer with `EvidenceKept`."""

    stall: Stall


@dataclass(frozen=True)
class RelearnDeadlines:
    """Take known step durations for a hint only."""


@dataclass(frozen=True)
class IntroduceToCoordinator:
    """Report the state of the engine core to the host's new coordinator."""


@dataclass(frozen=True)
class ConfigureHost:
    """Hand the settings in force to the host."""

    config: HoldfastConfig


@dataclass(frozen=True)
class DropRequestsOf:
    client_index: int


@dataclass(frozen=True)
class Log:
    text: str
    is_error: bool = False


Effect = (
    Release
    | SendToClient
    | SendToRank
    | ArmRank
    | ArmEngineCore
    | BreakOwnCollectives
    | InterruptBusyLoop
    | KillRank
    | KeepEvidence
    | RelearnDeadlines
    | IntroduceToCoordinator
    | ConfigureHost
    | DropRequestsOf
    | Log
)
