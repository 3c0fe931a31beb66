"""Messages between the sentinels: tagged unions, one decoder per link.

Messages evolve by fields with defaults only. No message names a method to call. Every command carries an id that is the
same from the HTTP call to the last worker and back. Every report carries the epoch of the sender, so that a late report
changes nothing.
"""

from __future__ import annotations

import msgspec

from holdfast.core.config import RuntimeSettings
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.decoding import Message, decode_with


class Rendezvous(msgspec.Struct, frozen=True):
    """Address of the store of an epoch. The store of an older epoch has no members.

    `extra_wait_s` is the additional time for a replacement, which loads its weights before it joins. `secret` precedes
    every key: what somebody without the secret writes into the store changes nothing.
    """

    host: str
    port: int
    epoch: int
    extra_wait_s: float = 0.0
    secret: str = ""

    def __repr__(self) -> str:
        return f"Rendezvous({self.host}:{self.port}, epoch {self.epoch})"


# ---- worker -> engine core


class WorkerReport(Message, frozen=True, kw_only=True):
    """Base of the reports of a rank. `pid` is the process that sends; a report of an old process changes nothing."""

    rank: int
    pid: int = 0  # until the sentinel that sends the report has signed


class WorkerAttached(WorkerReport, frozen=True, tag="worker-attached"):
    """First report. `unrebuildable`: state that a rebuild of collectives loses. `node`: 0 on the engine core's own."""

    pid: int
    hooks: tuple[str, ...]
    unrebuildable: tuple[str, ...] = ()
    node: int = 0


class RankFaulted(WorkerReport, frozen=True, tag="rank-faulted"):
    """Fault of a rank, which has fenced itself. `epoch` is the epoch of the failed step.

    `finishes`: no collective is broken, because the rank takes part in what is left of the step, and in further steps.
    """

    epoch: int
    fault: Fault
    finishes: bool = False


class WorkerAnswered(WorkerReport, frozen=True, tag="worker-answered"):
    command_id: str
    refused: str | None = None


class CollectivesBroken(WorkerReport, frozen=True, tag="collectives-broken"):
    """The rank takes no further step, and no peer waits in a collective with the rank."""

    epoch: int
    connections: int = 0


class RankStuck(WorkerReport, frozen=True, tag="rank-stuck"):
    """The rank still waits in a collective that was broken a while ago, and will not return from the call."""

    collective: str


FromWorker = WorkerAttached | RankFaulted | WorkerAnswered | CollectivesBroken | RankStuck


# ---- engine core -> worker


class ArmWorkerFault(Message, frozen=True, tag="arm-worker-fault"):
    command_id: str
    spec: InjectionSpec


class BreakCollectives(Message, frozen=True, tag="break-collectives"):
    """Take no further step and break the collectives. Void in a later epoch than `epoch`."""

    epoch: int


ToWorker = ArmWorkerFault | BreakCollectives


# ---- engine core -> client


class EngineReport(Message, frozen=True, kw_only=True):
    """Base of the reports of an engine core. `pid` as for a `WorkerReport`."""

    engine_id: int
    pid: int = 0


class EngineAttached(EngineReport, frozen=True, tag="engine-attached"):
    """First report of an engine core. `unrebuildable` concerns the engine core's own collectives, not the workers'."""

    pid: int
    hooks: tuple[str, ...]
    workers: tuple[WorkerAttached, ...]
    unrebuildable: tuple[str, ...] = ()
    pipeline_stages: int = 1


class EngineFaulted(EngineReport, frozen=True, tag="engine-faulted"):
    epoch: int
    fault: Fault


class EnginePaused(EngineReport, frozen=True, tag="engine-paused"):
    """The busy loop is paused and waits for a command.

    `fault` is None when the engine core was only told to pause. `broken` says whether collectives were broken,
    `search_progressed` that the fault was part of a search for a guilty request, and has advanced that search.
    `clears_rank` says that non-finite logits are of the named requests: none of those named earlier is well since.
    `progressed` is False when requests were open and no step has ended well since the last recovery.
    """

    epoch: int
    fault: Fault | None
    unfinished_requests: int
    broken: bool = False
    search_progressed: bool = False
    clears_rank: bool = False
    progressed: bool = True


class RequestsSuspected(EngineReport, frozen=True, tag="requests-suspected"):
    """State of the search for a poison request; the search is over with 0 `suspects`."""

    epoch: int
    suspects: int
    reason: str


MAX_ID_CHARS = 200  # a client may choose the id of a request


class RequestEnded(EngineReport, frozen=True, tag="request-ended"):
    """A poison request was ended with an error that names the `incident`."""

    epoch: int
    request_id: str
    incident: str
    reason: str


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a recovery. Seconds are of the engine core's monotonic clock."""

    requests: int = 0
    kept_blocks: int = 0
    evicted_blocks: int = 0
    tokens_to_recompute: int = 0
    stale_replies: int = 0
    salvaged_outputs: int = 0
    failed_requests: int = 0
    paused_s: float = 0.0
    drain_s: float = 0.0
    rewind_s: float = 0.0
    restore_s: float = 0.0
    rebuild_s: float = 0.0
    replaced_ranks: tuple[int, ...] = ()
    standbys_used: int = 0
    replace_s: float = 0.0


class EngineRecovered(EngineReport, frozen=True, tag="engine-recovered"):
    """End of a successful recovery. `worker_pids` are the present processes on the engine core's node."""

    command_id: str
    epoch: int
    report: RecoveryReport
    worker_pids: tuple[int, ...] = ()


class RecoveryAborted(EngineReport, frozen=True, tag="recovery-aborted"):
    """A recovery raised; the engine is paused again."""

    command_id: str
    epoch: int
    fault: Fault


class EngineAnswered(EngineReport, frozen=True, tag="engine-answered"):
    command_id: str
    refused: str | None = None


class Standbys(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Standby workers of one engine core: wanted, ready, and their memory in bytes.

    `failures` are starts in a row that came to nothing, the last one for the reason `problem`. `forked`: standbys are
    forked from a process that has imported the host. `last_start_s` is from the start of the standby that was ready
    last until it was. `without_weights`: standbys that were to be preloaded, and whose weights did not fit.
    """

    wanted: int
    ready: int
    memory_bytes: int
    starting: int = 0
    failures: int = 0
    problem: str = ""
    forked: bool = False
    last_start_s: float = 0.0
    without_weights: int = 0

    def __str__(self) -> str:
        said = f"{self.ready} of {self.wanted} ready, {self.memory_bytes / 2**20:.0f} MiB"
        return f"{said}; {self.problem}" if self.problem else said


class StandbysChanged(EngineReport, frozen=True, tag="standbys-changed"):
    """The number of standby workers, or their memory, has changed."""

    standbys: Standbys


MAX_STATE_BYTES = 1 << 16  # of the calls that are told to a replacement; they travel in its environment


class RuntimeStateChanged(EngineReport, frozen=True, tag="runtime-state-changed"):
    """State that callers set at run time: the calls, encoded for a replacement, and what no call brings back."""

    calls: bytes = b""
    unrepeatable: str = ""


FromEngine = (
    EngineAttached
    | EngineFaulted
    | EnginePaused
    | EngineRecovered
    | RecoveryAborted
    | EngineAnswered
    | StandbysChanged
    | RuntimeStateChanged
    | RequestsSuspected
    | RequestEnded
)


# ---- client -> engine core


class RecoverEngine(Message, frozen=True, tag="retry-engine"):
    """Rewind the requests, let the ranks back in under `epoch`, resume.

    Where collectives were broken, the ranks of the lockstep group meet at `rendezvous` and rebuild them. The
    ranks to `replace` get a new process first, and so does every rank whose process is gone.
    """

    command_id: str
    epoch: int
    rendezvous: Rendezvous | None = None
    replace: tuple[int, ...] = ()


class PauseEngine(Message, frozen=True, tag="pause-engine"):
    """Pause. Soft: at the next step boundary; else at once, with broken collectives.

    Void in another epoch than `epoch`. A paused engine learns from the command that the client is alive.
    """

    command_id: str
    epoch: int
    soft: bool = False


class EndEngine(Message, frozen=True, tag="end-engine"):
    command_id: str
    reason: str


class ArmFault(Message, frozen=True, tag="arm-fault"):
    command_id: str
    spec: InjectionSpec


class ChangeSettings(Message, frozen=True, tag="change-settings"):
    """The settings in force: an operator has changed some since the processes were started."""

    settings: RuntimeSettings


class CoordinatorReplaced(Message, frozen=True, tag="coordinator-replaced"):
    """The host's coordinator of engine cores is another process, which was told nothing yet."""


class ClientLost(Message, frozen=True, tag="client-lost"):
    """Loss of the API server with this index: no client takes the results of its requests."""

    client_index: int


ToEngine = RecoverEngine | PauseEngine | EndEngine | ArmFault | ChangeSettings | CoordinatorReplaced | ClientLost


_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)


def encode(message: FromWorker | ToWorker | FromEngine | ToEngine) -> bytes:
    return _encoder.encode(message)


def decode_from_worker(data: bytes) -> FromWorker:
    return decode_with(_from_worker, data)


def decode_to_worker(data: bytes) -> ToWorker:
    return decode_with(_to_worker, data)


def decode_from_engine(data: bytes) -> FromEngine:
    return decode_with(_from_engine, data)


def decode_to_engine(data: bytes) -> ToEngine:
    return decode_with(_to_engine, data)
