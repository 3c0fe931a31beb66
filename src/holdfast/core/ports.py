"""What the sentinels need of a host and of the world, as small protocols.

vLLM and the fake host implement the host ports; ZeroMQ and an in-memory twin implement `Wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.poison.detector import Standing
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.link_messages import RequestBlamed
from holdfast.core.protocol.messages import RecoveryReport
from holdfast.core.protocol.rendezvous import Rendezvous


class RequestHost(Protocol):
    """The open requests of an engine core. Its busy loop's thread."""

    def standings(self) -> Mapping[str, Standing]:
        """Where every open request stands, in the order in which they came."""
        ...

    def restrict(
        self, run: Collection[str] | None, held: Collection[str], before_step: Callable[[], None] | None
    ) -> None:
        """Schedule nobody but `run`, or everybody but `held` where that is none; nobody loses what it has computed.

        `before_step` is called before every turn of the busy loop, and may change the rule. Without it nobody is
        held any more.
        """
        ...

    def recompute(self, request_id: str) -> None:
        """Trust none of the KV of a request that waits, and let nobody else begin with it. Idempotent."""
        ...

    def add_control(self) -> None:
        """Add a short request that is nobody's, to be compared with; nothing where the host cannot."""
        ...

    def end(self, request_id: str, why: str) -> None:
        """End a request with an error that says why. Idempotent."""
        ...


class Devices(Protocol):
    """The devices of the machine, as evidence. Any thread; bounded."""

    def look(self) -> list[dict[str, Any]]:
        """What each of them says of its health; empty where there are none, or nobody to ask."""
        ...


class EngineHost(Protocol):
    """An engine core, seen from its sentinel. What may run on any thread says so; the rest is the busy loop's."""

    @property
    def engine_id(self) -> int: ...

    @property
    def in_lockstep(self) -> bool:
        """Whether other engine cores wait for this one in collectives."""
        ...

    @property
    def compiles_in_steps(self) -> bool:
        """Whether a step may compile a kernel that none before it needed."""
        ...

    @property
    def devices(self) -> Devices | None: ...

    @property
    def requests(self) -> RequestHost: ...

    def interrupt(self) -> None:
        """Have the busy loop end with an error at its next step boundary, also when it idles. Any thread."""
        ...

    def break_collectives(self) -> int:
        """Let nobody wait in a collective of the engine core itself. Any thread; the connections broken."""
        ...

    def unrebuildable(self) -> tuple[str, ...]:
        """What a rebuild of the engine core's own collectives cannot bring back, in words."""
        ...

    def unfinished_requests(self) -> int:
        """How many requests wait for this engine to go on."""
        ...

    def is_workers_reply(self, error: Exception) -> bool:
        """Whether an error is only the text of what a worker raised."""
        ...

    def is_interrupt(self, error: Exception) -> bool:
        """Whether the busy loop ended only because it was told to."""
        ...

    def lost_a_worker(self) -> bool:
        """Whether a worker process of this engine core is gone."""
        ...

    def kill_rank(self, rank: int) -> None:
        """End the process of a rank that is taken for hung, so that nobody waits for it. Any thread."""
        ...

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        """Drain stale replies, rewind every request, let the ranks back in under `epoch`.

        With a `rendezvous` every rank rebuilds its collectives there. Takes back interrupts of before. The ranks
        to `replace` get a new process first, and so does every rank whose process is gone.

        Raises: anything; a recovery that raises is a fault like any other.
        """
        ...

    def arm(self, spec: InjectionSpec) -> None:
        """Arm a fault at an engine-core phase. Any thread."""
        ...

    def drop_requests_of(self, client_index: int) -> None:
        """Compute nothing more for an API server that is gone. Any thread."""
        ...

    def introduce_to_coordinator(self) -> None:
        """Say to a coordinator that has been told nothing yet where this engine core stands. Any thread."""
        ...


class FrontEndHost(Protocol):
    """The process that owns the engine cores, seen from the ClientSentinel. Any thread."""

    def end_instance(self, order: End) -> None:
        """End the server: no new work, open requests answered with an error, non-zero exit. Does not wait."""
        ...

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        """Bind where the ranks of a lockstep group meet in an epoch. The store outlives every rank."""
        ...

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        """Let whoever still waits there fail at once."""
        ...

    def replace_engine(self, order: ReplaceEngine) -> None:
        """Start another process for an engine core that is gone. Does not wait; one that fails is lost again."""
        ...

    def leave_out_engine(self, order: LeaveOut) -> None:
        """See that nothing is left of an engine core and its workers. Does not wait."""
        ...

    def replace_process(self, order: ReplaceProcess) -> None:
        """Start another process for one beside the engine cores. Does not wait; one that fails is lost again."""
        ...

    def unrecoverable_reason(self) -> str:
        """Why nobody could start another engine core, or go on with its requests; empty where one can."""
        ...


class WorkerHost(Protocol):
    """A worker, seen from its sentinel. Any thread."""

    def arm(self, spec: InjectionSpec) -> None: ...

    def break_collectives(self, epoch: int) -> int | None:
        """Take no further step in `epoch` and let nobody wait in a collective.

        Returns:
            How many connections it broke; none where this rank is in a later epoch already.
        """
        ...

    def collective_under_way(self, epoch: int) -> str | None:
        """The collective of `epoch` or before that the main thread waits in; the same text for the same call."""
        ...


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

    def retry(self, command_id: str, engine_ids: Sequence[int] = ()) -> Future[None]:
        """Let the lockstep groups of some engines go on; every one that stands paused when none is named."""
        ...

    def pause(self, command_id: str, engine_ids: Sequence[int] = (), *, soft: bool = False) -> Future[None]:
        """Pause the lockstep groups of some engines, or all. Ends when they stand still."""
        ...

    def resume(self, command_id: str, engine_ids: Sequence[int] = ()) -> Future[None]:
        """Let groups go on that were paused by hand."""
        ...

    def restart_workers(self, command_id: str, engine_id: int, ranks: Sequence[int] = ()) -> Future[None]:
        """Give ranks of a healthy engine a new process; every one of its ranks when none is named."""
        ...

    def restart_engine(self, command_id: str, engine_id: int) -> Future[None]:
        """Put another process in the place of an engine core, and of all its workers, whatever its state."""
        ...

    def arm(self, command_id: str, spec: InjectionSpec) -> Future[None]: ...

    def request_blamed(self, blamed: RequestBlamed) -> None:
        """The process that serves has ended a request that every engine core dies of. Does not wait."""
        ...


class Communicators(Protocol):
    """The collectives of one process: breakable from any thread, rebuilt on the main one."""

    @property
    def broken(self) -> bool:
        """Whether `break_all` was called since the last rebuild that worked."""
        ...

    @property
    def any_placeholder(self) -> bool:
        """Whether a collective here would send nothing: this process was started alone and met nobody yet."""
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
