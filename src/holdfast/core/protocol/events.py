"""The one stream of events; status, history, PUB, log and metrics are views of it.

An event is a fact in the past tense, frozen. The message of a fault is without user data.
"""

from __future__ import annotations

import enum

import msgspec
from msgspec import UNSET, UnsetType

from holdfast.core.config import RuntimeSettings, SettingChange
from holdfast.core.faults.faults import Fault
from holdfast.core.poison.memory import PoisonMemoryView
from holdfast.core.protocol.commands import Giver
from holdfast.core.protocol.messages import RecoveryReport, Standbys
from holdfast.core.states import EngineState


class EventKind(enum.StrEnum):
    ENGINE_ATTACHED = "engine-attached"
    FAULT_REPORTED = "fault-reported"
    PAUSE_ORDERED = "pause-ordered"
    ENGINE_PAUSED = "engine-paused"
    DECISION_MADE = "decision-made"
    RECOVERY_STARTED = "recovery-started"
    ENGINE_RECOVERED = "engine-recovered"
    RECOVERY_FAILED = "recovery-failed"
    FAULT_ARMED = "fault-armed"
    ENGINE_LOST = "engine-lost"
    ENGINE_RESTARTED = "engine-restarted"
    STANDBYS_CHANGED = "standbys-changed"
    RUNTIME_STATE_CHANGED = "runtime-state-changed"
    REQUESTS_SUSPECTED = "requests-suspected"
    REQUEST_ENDED = "request-ended"
    REQUEST_REMEMBERED = "request-remembered"
    REQUEST_REFUSED = "request-refused"
    REQUEST_FORGOTTEN = "request-forgotten"
    PROCESS_ATTACHED = "process-attached"
    PROCESS_LOST = "process-lost"
    PROCESS_RESTARTED = "process-restarted"
    CONFIGURED = "configured"
    INSTANCE_DEFEATED = "instance-defeated"


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Decision in figures: the `rung` of the ladder, and the number of the try within the rung's window.

    `fault_class` and `rank` are of the fault that decided; `would` is what a dry run leaves undone; `ranks_out` are
    the ranks of the whole instance that are sick, gone, or of an engine core that is being replaced.
    """

    action: str
    rung: int
    policy: str
    fault_class: str | None = None
    rank: int | None = None
    tries: int = 0
    limit: int = 0
    ranks_out: int = 0
    would: str | None = None

    def __str__(self) -> str:
        """Return keys and values for a log line, without unknown values."""
        tries = f"{self.tries}/{self.limit}" if self.limit else None
        told = {"action": self.action, "would": self.would, "rung": self.rung, "try": tries, "class": self.fault_class}
        told |= {"rank": self.rank, "ranks_out": self.ranks_out or None, "policy": self.policy}
        return " ".join(f"{name}={value}" for name, value in told.items() if value is not None)


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Event. `at` is wall-clock seconds since 1970; `sequence` counts from 1 without gaps, in one life of the instance.

    An event of a `process` beside the engine cores has no `engine_id` and no `state`; an event of the whole instance
    has neither an engine nor a process.
    """

    sequence: int
    at: float
    kind: EventKind
    instance_id: str = ""
    engine_id: int | None = None
    state: EngineState | None = None
    process: str | None = None
    epoch: int = 0
    command_id: str | None = None
    given_by: Giver | None = None  # of the command, where an operator gave the command
    fault: Fault | None = None
    reason: str | None = None
    decision: DecisionRecord | None = None
    report: RecoveryReport | None = None
    interruption_s: float | None = None
    suspects: int | None = None
    request_id: str | None = None  # of a request that was ended
    incident: str | None = None  # the name under which its client was told
    changes: tuple[SettingChange, ...] = ()  # of settings, at run time

    def without_stack(self) -> Event:
        """Return the event as it is published: the stack of the fault is in the incident only."""
        if self.fault is None or self.fault.stack is UNSET:
            return self
        return msgspec.structs.replace(self, fault=msgspec.structs.replace(self.fault, stack=UNSET))


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Budget of a rung that is not full: tries that are left of `limit`, and when the spent ones come back.

    `refills_at` are wall-clock seconds since 1970; while an incident is open its own tries stay spent.
    """

    rung: str  # the action that spends a try
    limit: int
    remaining: int
    refills_at: tuple[float, ...] = ()


_STATUS_NAMES = {"engine_id": "id", "last_command_id": "last_ft_request_id", "last_error": "ft_error"}  # the host's


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True, rename=_STATUS_NAMES):
    """Status of one engine, the same from the instance to HTTP: the host's fields first, then ours."""

    engine_id: int
    status: str  # of the original protocol
    fault_info: str | UnsetType = UNSET
    last_command_id: str | UnsetType = UNSET
    last_error: str | UnsetType = UNSET
    state: EngineState
    epoch: int = 0
    ranks: int = 0
    lockstep_with: tuple[int, ...] = ()  # the engines that pause when this engine does
    paused_by_operator: bool = False
    unrebuildable: tuple[str, ...] = ()  # what a rebuild of its collectives cannot bring back
    pid: int | None = None
    hooks: tuple[str, ...] = ()
    worker_hooks: tuple[str, ...] = ()  # those that every rank reported
    reason: str | None = None
    recoveries: int = 0
    worker_restarts: int = 0
    faults: int = 0
    restarts: int = 0  # replacements of the engine core's process
    suspects: int = 0  # requests of which one may be a poison request
    ended_requests: int = 0  # poison requests
    standbys: Standbys | UnsetType = UNSET
    unrepeatable_state: str | UnsetType = UNSET  # set at run time, and lost in a new process
    budgets: tuple[BudgetStatus, ...] = ()  # of the rungs on which a try is spent; the others are full
    pipeline_stages: int = 1  # that the ranks form, stage by stage
    sick_ranks: tuple[int, ...] = ()  # they get a new process in the next recovery


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of a process beside the engine cores: the coordinator, or one of several API servers.

    `pid` is none from the loss of the process until its replacement has started.
    """

    name: str
    pid: int | None = None
    restarts: int = 0  # replacements of the process


class FullText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Text of an exception as it is, of a fault whose message leaves something out. For the status, on request."""

    engine_id: int
    rank: int | None = None
    at: float = 0.0
    error_type: str
    place: str = ""
    text: str


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """Status of the instance in the core; a new view is made at every change."""

    engines: tuple[EngineStatus, ...]
    settings: RuntimeSettings  # in force
    instance_id: str = ""  # of this life of the instance
    sequence: int = 0
    notify_address: str = ""
    defeat: str | None = None
    processes: tuple[ProcessStatus, ...] = ()
    dropped: dict[str, int] = {}  # what each consumer of events or log lines lost, in the owner's process
    full_texts: tuple[FullText, ...] = ()  # the latest
    guilt: PoisonMemoryView = PoisonMemoryView()  # for API servers: holds a secret, and is not shown as it is

    @property
    def ready(self) -> bool:
        """Whether any engine makes progress, after all engines have started."""
        started = all(e.state is not EngineState.STARTING for e in self.engines)
        return self.defeat is None and started and any(e.state.makes_progress for e in self.engines)

    def engine(self, engine_id: int) -> EngineStatus | None:
        """Return the status of an engine; None for an unknown engine."""
        return next((e for e in self.engines if e.engine_id == engine_id), None)
