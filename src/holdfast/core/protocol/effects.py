"""What an instance wants done: effects, returned by the pure `Instance` and carried out by its shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.core.protocol import messages as m
from holdfast.core.protocol.events import Event, InstanceView


@dataclass(frozen=True)
class Send:
    """Send a command to an engine core."""

    engine_id: int
    message: m.ToEngine


@dataclass(frozen=True)
class BeginRecovery:
    """Command every engine of a lockstep group to recover under one epoch.

    Where collectives were broken, they are rebuilt at a rendezvous that is opened for this epoch. `replace`
    names the ranks of an engine that get a new process.
    """

    engine_ids: tuple[int, ...]
    command_id: str
    epoch: int
    rebuild: bool
    replace: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    extra_wait_s: float = 0.0  # what a new process may take before it comes to the rendezvous


@dataclass(frozen=True)
class CloseRendezvous:
    """Close a failed rendezvous: ranks that still wait there fail at once."""

    engine_ids: tuple[int, ...]
    epoch: int


@dataclass(frozen=True)
class Publish:
    """Publish an event; `view` is the instance after the event."""

    event: Event
    view: InstanceView


@dataclass(frozen=True)
class Settle:
    """End a command; `error` is the reason of a failure, `refused` marks a command that was never begun."""

    command_id: str
    error: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class End:
    """End the instance with a non-zero exit code and a last line: no repair is left.

    `processes` are the workers, of which none may be left behind.
    """

    reason: str
    processes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReplaceEngine:
    """Replace the lost process of an engine core, after a pause.

    Wait until the API servers have seen the event `known_at`, and until none of `processes`, which
    its workers were, is still there. `kill`: it is still there itself, and has to go first. With `joins_epoch` it
    starts alone and stands until its lockstep group lets it in, out of that epoch. `runtime_state` is what
    callers set in the lost process at run time, encoded by the lost process.
    """

    engine_id: int
    after_s: float
    known_at: int
    processes: tuple[int, ...] = ()
    kill: bool = False
    joins_epoch: int | None = None
    runtime_state: bytes = b""


@dataclass(frozen=True)
class LeaveOut:
    """Leave an engine core out, without a replacement. `kill`: the process is still alive and has to end."""

    engine_id: int
    processes: tuple[int, ...] = ()
    kill: bool = False


@dataclass(frozen=True)
class ReplaceProcess:
    """Replace a lost process beside the engine cores, after a pause."""

    process: str
    after_s: float


Effect = Send | BeginRecovery | CloseRendezvous | ReplaceEngine | LeaveOut | ReplaceProcess | Publish | Settle | End
