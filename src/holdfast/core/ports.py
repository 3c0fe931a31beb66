"""What the sentinels need of a host and of the world, as small protocols.

vLLM and the fake host implement the host ports; ZeroMQ and an in-memory twin implement `Wire`.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from holdfast.core.config import HoldfastConfig
from holdfast.core.events import Event, InstanceView
from holdfast.core.faults import Fault
from holdfast.core.injection import InjectionSpec
from holdfast.core.messages import RecoveryReport
from holdfast.core.rendezvous import Rendezvous


class EngineHost(Protocol):
    """An engine core, seen from its sentinel. Everything but `arm` runs on the busy loop's thread."""

    @property
    def engine_id(self) -> int: ...

    def unfinished_requests(self) -> int:
        """How many requests wait for this engine to go on."""
        ...

    def is_workers_reply(self, error: Exception) -> bool:
        """Whether an error is only the text of what a worker raised."""
        ...

    def lost_a_worker(self) -> bool:
        """Whether a worker process of this engine core is gone."""
        ...

    def recover(self, error: Exception, epoch: int) -> RecoveryReport:
        """Drain stale replies, rewind every request, let the ranks back in under `epoch`.

        Raises: anything; a recovery that raises is a fault like any other.
        """
        ...

    def arm(self, spec: InjectionSpec) -> None:
        """Arm a fault at an engine-core phase. Any thread."""
        ...


class FrontEndHost(Protocol):
    """The process that owns the engine cores, seen from the ClientSentinel. Any thread."""

    def end_instance(self, reason: str) -> None:
        """End the server: no new work, open requests answered with an error, non-zero exit."""
        ...


class WorkerHost(Protocol):
    """A worker, seen from its sentinel. Any thread."""

    def arm(self, spec: InjectionSpec) -> None: ...


class FaultReporter(Protocol):
    """Where a worker's main thread leaves its own fault, without waiting."""

    def report(self, fault: Fault, epoch: int) -> None: ...


class ControlPlane(Protocol):
    """What HTTP and the command line may ask of the ClientSentinel. Any thread.

    The futures fail with an `OperatorError` for an instruction that cannot be followed, and with
    `RecoveryFailed` for one that was followed and did not work.
    """

    @property
    def config(self) -> HoldfastConfig: ...

    def view(self) -> InstanceView: ...

    def history(self, after: int = 0) -> tuple[Event, ...]:
        """Events with a sequence greater than `after`, oldest first; bounded."""
        ...

    def retry(self, command_id: str, engine_id: int | None) -> Future[None]: ...

    def arm(self, command_id: str, spec: InjectionSpec) -> Future[None]: ...


class Communicators(Protocol):
    """The collectives of one process: breakable from any thread, rebuilt on the main one."""

    @property
    def broken(self) -> bool:
        """Whether `break_all` was called since the last rebuild that worked."""
        ...

    def break_all(self) -> int:
        """Make every collective in progress and every later one fail at once, here and at the peers.

        Any thread, idempotent, never raises. Returns how many connections it broke (0: none to break).
        """
        ...

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """New groups in the places of the old. Main thread.

        Raises: `RecoveryFailed` when the peers do not come in time or the rendezvous goes. It may be
        called again, under a newer epoch, after it raised.
        """
        ...

    def unrebuildable(self) -> tuple[str, ...]:
        """What a rebuild cannot bring back here, in words; empty where it can bring back everything."""
        ...
