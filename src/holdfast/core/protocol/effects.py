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
    """Order every engine of a lockstep group to recover under one epoch.

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
    """A rendezvous has failed: whoever still waits there is to fail at once."""

    engine_ids: tuple[int, ...]
    epoch: int


@dataclass(frozen=True)
class Publish:
    """Something happened; `view` is the instance after it."""

    event: Event
    view: InstanceView


@dataclass(frozen=True)
class Settle:
    """A command has ended; `error` says why it failed, `refused` that it was never followed."""

    command_id: str
    error: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class End:
    """Nothing is left that can help: end the instance, non-zero, with this last line.

    None of `processes`, which are its workers, is left behind.
    """

    reason: str
    processes: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReplaceEngine:
    """Start another process for an engine core that is gone, after a pause.

    Not before whoever serves its requests has seen the event `known_at`, and not while one of `processes`, which
    its workers were, is still there. `kill`: it is still there itself, and has to go first. With `joins_epoch` it
    starts alone and stands until its lockstep group lets it in, out of that epoch.
    """

    engine_id: int
    after_s: float
    known_at: int
    processes: tuple[int, ...] = ()
    kill: bool = False
    joins_epoch: int | None = None


@dataclass(frozen=True)
class LeaveOut:
    """Nobody takes the place of an engine core: what is left of it and of its workers ends. `kill`: it is there."""

    engine_id: int
    processes: tuple[int, ...] = ()
    kill: bool = False


@dataclass(frozen=True)
class ReplaceProcess:
    """Start another process for one beside the engine cores that is gone, after a pause."""

    process: str
    after_s: float


Effect = Send | BeginRecovery | CloseRendezvous | ReplaceEngine | LeaveOut | ReplaceProcess | Publish | Settle | End
