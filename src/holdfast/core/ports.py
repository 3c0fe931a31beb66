"""What the sentinels need of a host, as small protocols.

The vLLM host and the fake host implement `EngineHost`, `RequestHost`, `WorkerHost` and `Communicators`; both pass
the conformance suite in `tests/contract/hosts`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.poison.detector import RequestProgress
from holdfast.core.protocol.commands import Command
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.core.protocol.link_messages import GuiltReported, PoisonRequestEnded, RequestsRefused
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.core.stalls.standing import Planning


class RequestHost(Protocol):
    """The open requests of an engine core. Every call comes from the busy loop's thread."""

    def request_progress(self) -> Mapping[str, RequestProgress]:
        """Return the progress of every open request, by request id, in the order of arrival."""
        ...

    def restrict(
        self, run: Collection[str] | None, excluded: Collection[str], before_step: Callable[[], None] | None
    ) -> None:
        """Set the rule by which requests are scheduled, until the next call.

        A request keeps its blocks and its computed tokens while the rule keeps the request out of steps.

        Args:
            run: schedule these requests only; None: every request but `excluded`.
            excluded: schedule none of these requests.
            before_step: called before each step is scheduled; may call `restrict`. None: end the rule, whatever
                `run` and `excluded` say; the scheduler is the host's own again.
        """
        ...

    def recompute(self, request_id: str) -> None:
        """Give up the KV of a rewound request, also in the prefix cache.

        Idempotent; does nothing for an unknown request, or where the host drops all KV in a rewind.
        """
        ...

    def add_control(self) -> None:
        """Add a short request of Holdfast's own, for comparison with a suspect; no front end hears of its tokens.

        Does nothing where the model generates no tokens.
        """
        ...

    def end(self, request_id: str, why: str) -> None:
        """End an open request with an error that carries `why`.

        Idempotent; does nothing for an unknown request.
        """
        ...


class Devices(Protocol):
    """The devices of the machine, as evidence. Any thread; bounded."""

    def look(self) -> list[dict[str, Any]]:
        """Return the state of health of each device; empty without devices or without a driver to ask."""
        ...


class EngineHost(Protocol):
    """An engine core, seen from its sentinel.

    Calls come from the busy loop's thread, except where a docstring says "Any thread".
    """

    @property
    def engine_id(self) -> int:
        """The index of the engine core in the instance. Any thread."""
        ...

    @property
    def in_lockstep(self) -> bool:
        """Whether other engine cores wait for this engine core in collectives. Any thread."""
        ...

    @property
    def pipeline_stages(self) -> int:
        """Number of pipeline stages that the ranks form, stage by stage. Any thread."""
        ...

    @property
    def compiles_in_steps(self) -> bool:
        """Whether a step may compile a kernel that no earlier step needed. Any thread."""
        ...

    @property
    def devices(self) -> Devices | None:
        """The devices of the ranks; None where devices are not observed. Any thread."""
        ...

    @property
    def requests(self) -> RequestHost:
        """The open requests."""
        ...

    def interrupt(self) -> None:
        """Make the busy loop end with an error at the next step boundary, also while idle. Any thread."""
        ...

    def break_collectives(self) -> int:
        """Make every collective of the engine core itself fail at once, also at the peers. Any thread.

        The reply of a step under way is not delivered, whatever the ranks say: the busy loop ends as interrupted.

        Returns:
            The number of connections broken; 0 outside of a lockstep group.
        """
        ...

    def unrebuildable(self) -> tuple[str, ...]:
        """Return the parts of the engine core's own collectives that a rebuild cannot restore, in words."""
        ...

    def unfinished_requests(self) -> int:
        """Return the number of requests that were accepted and have not finished. Any thread."""
        ...

    @property
    def step_ended_well(self) -> bool:
        """Whether the outputs of a step were processed since the last call of `recover` began."""
        ...

    def planning(self) -> Planning:
        """Return how far scheduling has come. Any thread."""
        ...

    def ready_requests(self) -> int:
        """Return how many requests could be in a step now. Any thread.

        0 while a step is in flight, and where the host has a reason of its own to plan none: a pause, requests that
        wait for something from outside, or KV that is held for such a request.
        """
        ...

    def is_workers_reply(self, error: Exception) -> bool:
        """Tell whether an error of the busy loop only repeats the text of a worker's error."""
        ...

    def is_interrupt(self, error: Exception) -> bool:
        """Tell whether the busy loop ended only because of `interrupt` or of a break of its ranks' collectives.

        False once a worker process is gone.
        """
        ...

    def lost_ranks(self) -> tuple[int, ...]:
        """Return the ranks whose worker process is gone and not replaced yet, in order. Any thread."""
        ...

    def kill_rank(self, rank: int) -> None:
        """Kill the process of a rank that was declared hung: calls to the rank fail soon after. Any thread."""
        ...

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        """Salvage computed outputs, replace ranks, rewind every request and let the ranks take steps in `epoch`.

        Interrupts from before the call are dropped. May be called again, in a newer epoch, after it raised.

        Args:
            error: what ended the busy loop; after `NothingScheduled` no request keeps KV.
            epoch: newer than every epoch before.
            rendezvous: where every rank rebuilds its collectives; None: collectives stay as they are.
            replace: ranks that get a new process, beside every rank whose process is gone.

        Returns:
            The figures of the recovery: rewound requests, blocks kept, cached blocks evicted, ranks replaced.

        Raises:
            Exception: any; a failed recovery is a fault of its own.
        """
        ...

    def arm(self, spec: InjectionSpec) -> None:
        """Arm a fault at a phase of the engine core. Any thread."""
        ...

    def configure(self, config: HoldfastConfig) -> None:
        """Take the settings in force, for every recovery that begins from now on. Any thread."""
        ...

    def drop_requests_of(self, client_index: int) -> None:
        """Abort the requests of an API server that is gone, before the next step is scheduled. Any thread."""
        ...

    def introduce_to_coordinator(self) -> None:
        """Tell a replaced coordinator the wave and load of this engine core; nothing without one. Any thread."""
        ...


class FrontEndHost(Protocol):
    """The process that owns the engine cores, seen from the ClientSentinel. Any thread; no call waits."""

    def end_instance(self, effect: End) -> None:
        """End the server: refuse new work, end open requests with an error, exit non-zero."""
        ...

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        """Bind the rendezvous store of a lockstep group in an epoch. The store outlives every rank."""
        ...

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        """Close a rendezvous store: every rank that waits in the rendezvous fails at once."""
        ...

    def replace_engine(self, effect: ReplaceEngine) -> None:
        """Start the replacement of a lost engine core. A replacement that fails is reported as lost."""
        ...

    def leave_out_engine(self, effect: LeaveOut) -> None:
        """End all processes of an engine core and of its workers."""
        ...

    def replace_process(self, effect: ReplaceProcess) -> None:
        """Start the replacement of a process beside the engine cores. A replacement that fails is reported as lost."""
        ...

    def unrecoverable_reason(self) -> str:
        """Return why no engine core can be replaced, or no engine can resume requests; empty where both can."""
        ...


class WorkerHost(Protocol):
    """A worker, seen from its sentinel. Any thread."""

    def arm(self, spec: InjectionSpec) -> None:
        """Arm a fault at a phase of the worker's steps."""
        ...

    def break_collectives(self, epoch: int) -> int | None:
        """Refuse every further step in `epoch` and make every collective fail at once, also at the peers.

        The result of a step under way is refused as well, even if the step ends without an error.

        Returns:
            The number of connections broken, 0 when broken already; None where this rank is in a later epoch,
            whose steps and collectives stay untouched.
        """
        ...

    def collective_under_way(self, epoch: int) -> str | None:
        """Return the collective in which the main thread waits, the same text for the same call.

        None where the main thread is in no collective, or has left the steps of `epoch` for a rebuild.
        """
        ...


class FaultReporter(Protocol):
    """Receiver of the faults of a worker's main thread. Does not wait."""

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        """Take a fault. `finishes`: the rank takes part in the rest of its step, and has broken nothing."""
        ...


class ControlPlane(Protocol):
    """Status, events and commands of the instance, for HTTP and the command line. Any thread.

    The futures fail with an `OperatorError` for a command that cannot be carried out, and with `RecoveryFailed`
    for a command that was carried out and did not work.
    """

    @property
    def config(self) -> HoldfastConfig:
        """The configuration in force."""
        ...

    def view(self) -> InstanceView: ...

    def history(self, after: int = 0) -> tuple[Event, ...]:
        """Return the events with a sequence greater than `after`, oldest first; bounded."""
        ...

    def submit(self, command: Command) -> Future[None]:
        """Carry out a command. The future ends with the command."""
        ...

    def incidents(self, asked: str) -> Future[bytes]:
        """Return the list of incidents as JSON for an empty text, an incident for its id, a tar for `ID.tar`.

        The future fails with `UnknownIncident`, or stays without a result where the folder does not answer.
        """
        ...

    def poison_request_ended(self, blamed: PoisonRequestEnded) -> None:
        """Take note that an API server has ended a request that kills every engine core. Does not wait."""
        ...

    def tell_of_guilt(self, report: GuiltReported | RequestsRefused) -> None:
        """Take note of a request that was found guilty, or of refused repetitions. Does not wait."""
        ...


class Communicators(Protocol):
    """The collectives of one process: breakable from any thread, rebuilt on the main thread."""

    @property
    def broken(self) -> bool:
        """Whether `break_all` was called since the last rebuild that worked."""
        ...

    @property
    def any_placeholder(self) -> bool:
        """Whether a collective sends nothing: the process was started alone and has met no peer yet."""
        ...

    def break_all(self) -> int:
        """Make every collective in progress and every later one fail at once, here and at the peers.

        Any thread; idempotent; never raises.

        Returns:
            The number of connections broken (0: none to break).
        """
        ...

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        """Replace every group by a new group of the same members. Main thread.

        Raises:
            RecoveryFailed: the peers do not come within `timeout_s`, or the rendezvous closes. The call may be
                repeated in a newer epoch.
        """
        ...

    def unrebuildable(self) -> tuple[str, ...]:
        """Return what a rebuild cannot restore, in words; empty where a rebuild restores everything."""
        ...
