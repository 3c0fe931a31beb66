"""Faults: class, cause in words, and the phases of a step in which faults happen.

Owns the closed lists of phases and fault classes; `classification` assigns classes. Must never hold prompt text or
tokens.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType

MAX_REQUEST_IDS = 64
MAX_REQUEST_ID_CHARS = 256


class Phase(enum.StrEnum):
    """Where in a step something happens, in the order of a step. Faults are injected only here."""

    SCHEDULE_START = "schedule-start"  # engine core: before the scheduler runs
    SCHEDULE_END = "schedule-end"  # engine core: scheduled, not yet executed
    STEP_START = "step-start"  # worker: before the model runner touches the batch
    FORWARD = "forward"  # worker: inside the model's forward pass
    STEP_END = "step-end"  # worker: after the forward pass, before sampling
    SAMPLE_START = "sample-start"  # worker: before sampling
    SAMPLE_END = "sample-end"  # worker: tokens are sampled, the reply is not sent
    OUTPUT_START = "output-start"  # engine core: reply here, not yet processed
    OUTPUT_REQUEST = "output-request"  # engine core: in the middle of a batch's outputs
    OUTPUT_END = "output-end"  # engine core: processed, not yet sent to the front end
    DP_SYNC = "dp-sync"  # engine core: before the data-parallel ranks agree whether to go on
    RECOVERY = "recovery"  # engine core: inside a recovery, before requests are rewound
    REBUILD = "rebuild"  # worker: inside a recovery, before its collectives are rebuilt
    RESUME = "resume"  # engine core: inside a recovery, everything restored, not yet running

    @property
    def in_worker(self) -> bool:
        return self in _WORKER_PHASES


_WORKER_PHASES = frozenset(
    {Phase.STEP_START, Phase.FORWARD, Phase.STEP_END, Phase.SAMPLE_START, Phase.SAMPLE_END, Phase.REBUILD}
)


class FaultClass(enum.StrEnum):
    """How deep a fault goes; decides the first rung that can help."""

    COMMUNICATOR = "communicator"  # a collective was broken under it: somebody else failed first
    TRANSIENT = "transient"  # an exception; the processes and their memory are intact
    NUMERICAL = "numerical"  # a step computed what is no number; its KV is suspect, the process is not
    UNKNOWN = "unknown"  # an error that no row of the table names
    DEVICE = "device"  # a sticky device error: nothing in this process works again
    WORKER_LOST = "worker-lost"  # a worker process is gone
    UNRESPONSIVE = "unresponsive"  # a rank did not answer within its bound


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault, as sent between processes and shown to people. `at`: wall-clock seconds of detection, 0 if unknown.

    `message` is without user data, `place` says where in the code the exception was raised, and `full_text` is the text
    as it is, where something was held back; only the status shows that, on request. `stack`: the place in each frame of
    the exception, outermost first; the incident shows that, and events leave it out. `class_reason` explains the class.
    `request_ids`: requests in whose part of the step the fault showed, where known, at most `MAX_REQUEST_IDS`;
    `names_cause`: one of these is the cause. `adapter_id`: the adapter that a step could not load, and 0 for any other
    fault.
    """

    fault_class: FaultClass
    error_type: str
    message: str
    engine_id: int
    rank: int | None = None
    phase: str | None = None
    step: int | None = None
    at: float = 0.0
    class_reason: str = ""
    request_ids: tuple[str, ...] = ()
    names_cause: bool = False
    adapter_id: int = 0
    place: str = ""
    full_text: str | UnsetType = UNSET
    stack: tuple[str, ...] | UnsetType = UNSET

    def __repr__(self) -> str:
        return f"Fault({self.fault_class}: {self.summary()})"  # without the full text

    def summary(self) -> str:
        where = f"engine {self.engine_id}" + ("" if self.rank is None else f", rank {self.rank}")
        phase = f" at {self.phase}" if self.phase else ""
        place = f" ({self.place})" if self.place else ""
        return f"{self.error_type} in {where}{phase}: {self.message}{place}"


def unresponsive(engine_id: int, what: str) -> Fault:
    """Return the fault of a process that did not answer within the bound."""
    return Fault(fault_class=FaultClass.UNRESPONSIVE, error_type="PeerSilent", message=what, engine_id=engine_id)


def hung(engine_id: int, rank: int, why: str, at: float, *, phase: str | None = None, step: int | None = None) -> Fault:
    """Return the fault of a rank that is declared hung, with the reason."""
    return Fault(
        fault_class=FaultClass.UNRESPONSIVE,
        error_type=_UNANSWERED_TYPE,
        message=f"rank {rank} {why}",
        engine_id=engine_id,
        rank=rank,
        phase=phase,
        step=step,
        at=at,
    )


def is_of_the_process(fault: Fault) -> bool:
    """Return True when only a new process helps, because the rank's process cannot be trusted to work again."""
    return fault.fault_class in _OF_THE_PROCESS


_OF_THE_PROCESS = frozenset({FaultClass.DEVICE, FaultClass.WORKER_LOST, FaultClass.UNRESPONSIVE})


def deeper(known: Fault | None, other: Fault) -> Fault:
    """Return the fault that decides, of two faults of the same incident: `other` only when its class is deeper."""
    if known is None:
        return other
    return other if _DEPTH.index(other.fault_class) > _DEPTH.index(known.fault_class) else known


_DEPTH = (
    FaultClass.COMMUNICATOR,
    FaultClass.TRANSIENT,
    FaultClass.NUMERICAL,
    FaultClass.UNKNOWN,
    FaultClass.UNRESPONSIVE,
    FaultClass.DEVICE,
    FaultClass.WORKER_LOST,
)

_UNANSWERED_TYPE = "PeerSilent"  # a bounded wait of ours


def bounded_ids(request_ids: Iterable[str]) -> tuple[str, ...]:
    """Return as many request ids as a fault carries, each bounded in length."""
    return tuple(i[:MAX_REQUEST_ID_CHARS] for i in itertools.islice(request_ids, MAX_REQUEST_IDS))
