"""Every metric that Holdfast adds to the host's: name, kind, labels, values of closed labels, and meaning. Pure.

The reference of the metrics is written from here, and the metrics themselves are made from here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.core.faults.faults import FaultClass
from holdfast.core.policy.ladder import Action
from holdfast.core.states import EngineState


class Kind(enum.StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Scope(enum.StrEnum):
    """Processes that tell a metric."""

    OWNER = "owner"
    FRONT_END = "each API server"
    BOTH = "owner and each API server"


class Phase(enum.StrEnum):
    """Phase of a recovery, in the order of a recovery."""

    DETECT = "detect"
    CONTAIN = "contain"
    DECIDE = "decide"
    REPAIR = "repair"
    RESTORE = "restore"
    FIRST_TOKEN = "first-token"


class Outcome(enum.StrEnum):
    """What became of requests in recoveries."""

    REWOUND = "rewound"
    MOVED = "moved"
    FAILED = "failed"
    QUARANTINED = "quarantined"


SUCCEEDED, RECOVERY_FAILED = "succeeded", "failed"
LOST_ENGINE, LOST_PROCESS = "engine-lost", "process-lost"
READY, MISSING = "ready", "missing"
REPAIRS = tuple(a for a in Action if a not in (Action.AWAIT, Action.LEAVE_OUT, Action.END))
BUDGETED = (Action.RETRY, Action.RESTART_WORKERS, Action.RESTART_ENGINE)

INTERRUPTION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
PHASE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True)
class Definition:
    """Definition of a metric. `values` are those of labels with a closed list; `mode` joins several API servers."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    scope: Scope = Scope.OWNER
    mode: str = "mostrecent"

    @property
    def sample(self) -> str:
        """Return the name of the samples, as a query names them."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


def _counter(name: str, meaning: str, labels: tuple[str, ...] = (), **more: object) -> Definition:
    return Definition(name.removesuffix("_total"), Kind.COUNTER, meaning, labels, **more)  # type: ignore[arg-type]


def _gauge(name: str, meaning: str, labels: tuple[str, ...] = (), **more: object) -> Definition:
    return Definition(name, Kind.GAUGE, meaning, labels, **more)  # type: ignore[arg-type]


ENGINE_STATE = _gauge(
    "holdfast_engine_state",
    "1 for the present state of the engine core, 0 for every other state",
    ("engine", "state"),
    values={"state": tuple(EngineState)},
)
PROTECTED = _gauge("holdfast_protected", "1 while the engine core has attached all hooks, else 0", ("engine",))
PAUSED_BY_OPERATOR = _gauge(
    "holdfast_paused_by_operator", "1 while an operator keeps the engine core paused, else 0", ("engine",)
)
UNREBUILDABLE = _gauge(
    "holdfast_unrebuildable",
    "1 where a rebuild cannot bring back all collectives of the engine core, else 0",
    ("engine",),
)
ENGINE_HEALTHY = _gauge(
    "vllm:engine_healthy", "1 while the engine core makes progress, else 0: for routers", ("engine",)
)
FAULTS = _counter(
    "holdfast_faults_total",
    "faults, by class; an exit of an engine core or of a process beside the engine cores has a class of its own",
    ("class", "engine"),
    values={"class": (*FaultClass, LOST_ENGINE, LOST_PROCESS)},
)
RECOVERIES = _counter(
    "holdfast_recoveries_total",
    "recoveries of lockstep groups and of processes beside the engine cores",
    ("action", "outcome"),
    values={"action": REPAIRS, "outcome": (SUCCEEDED, RECOVERY_FAILED)},
)
PHASES = Definition(
    "holdfast_recovery_phase_seconds",
    Kind.HISTOGRAM,
    "duration of each phase of a recovery",
    ("phase",),
    values={"phase": tuple(Phase)},
    buckets=PHASE_BUCKETS,
    scope=Scope.BOTH,
)
INTERRUPTION = Definition(
    "holdfast_interruption_seconds",
    Kind.HISTOGRAM,
    "longest wait of an interrupted stream between two tokens around a recovery",
    buckets=INTERRUPTION_BUCKETS,
    scope=Scope.FRONT_END,
)
REQUESTS = _counter(
    "holdfast_requests_total",
    "requests that a recovery rewound, moved or failed, or that were quarantined as suspects",
    ("outcome",),
    values={"outcome": tuple(Outcome)},
    scope=Scope.BOTH,
)
RECOMPUTED = _counter(
    "holdfast_tokens_recomputed_total", "tokens that recoveries had to compute again", scope=Scope.BOTH
)
BUDGET = _gauge(
    "holdfast_restart_budget_remaining",
    "tries that are left on a rung of the ladder",
    ("rung", "engine"),
    values={"rung": BUDGETED},
)
BUDGET_LIMIT = _gauge(
    "holdfast_restart_budget_limit",
    "tries of a rung of the ladder within its window",
    ("rung",),
    values={"rung": BUDGETED},
)
STANDBYS = _gauge(
    "holdfast_standby_workers",
    "standby workers that are ready, or wanted and missing",
    ("engine", "state"),
    values={"state": (READY, MISSING)},
)
DROPPED = _counter(
    "holdfast_events_dropped_total",
    "events and log lines that a consumer lost, because its queue was full",
    ("sink",),
    scope=Scope.BOTH,
)
PROCESS_UP = _gauge(
    "holdfast_process_up",
    "1 while a process beside the engine cores runs, 0 from its loss to its replacement",
    ("process",),
)
OWNER_UP = _gauge(
    "holdfast_owner_up",
    "1 while the owner of the engine cores answers every API server",
    scope=Scope.FRONT_END,
    mode="livemin",
)
DEFEATED = _gauge("holdfast_defeated", "1 after the instance was defeated, else 0")
READY_GAUGE = _gauge("holdfast_ready", "1 while the instance makes progress, as the readiness probe says, else 0")
JOURNAL_REQUESTS = _gauge(
    "holdfast_journal_requests", "open requests in the request journals", scope=Scope.FRONT_END, mode="livesum"
)
JOURNAL_BYTES = _gauge(
    "holdfast_journal_bytes",
    "memory of the request journals: delivered tokens, and multimodal inputs",
    scope=Scope.FRONT_END,
    mode="livesum",
)
JOURNAL_LIMIT = _gauge(
    "holdfast_journal_limit_bytes",
    "bound of the multimodal inputs in the request journals",
    scope=Scope.FRONT_END,
    mode="livesum",
)
BUILD = _gauge("holdfast_build_info", "1, with the versions of Holdfast and of the host", ("version", "host_version"))

DEFINITIONS = (
    ENGINE_STATE,
    ENGINE_HEALTHY,
    PROTECTED,
    READY_GAUGE,
    DEFEATED,
    PAUSED_BY_OPERATOR,
    UNREBUILDABLE,
    FAULTS,
    RECOVERIES,
    PHASES,
    INTERRUPTION,
    REQUESTS,
    RECOMPUTED,
    BUDGET,
    BUDGET_LIMIT,
    STANDBYS,
    PROCESS_UP,
    OWNER_UP,
    DROPPED,
    JOURNAL_REQUESTS,
    JOURNAL_BYTES,
    JOURNAL_LIMIT,
    BUILD,
)
