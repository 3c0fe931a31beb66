"""Engine cores and the lockstep groups that they form, as the instance knows them.

A lockstep group is the set of engine cores that share collectives: they pause together, recover together under one
epoch and resume together. An engine core without peers is a group of one. Data with small moves of its own; the
phases decide what follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from holdfast.core.faults.faults import Fault, FaultClass, deeper, is_of_the_process
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.policy.incident import NOT_OPEN, Budget, Fruitless, GroupBudgets, Incident, Recovery
from holdfast.core.protocol.events import BudgetStatus, EngineStatus
from holdfast.core.protocol.messages import Standbys
from holdfast.core.states import EngineState, Trigger, next_state

MAX_POISONS = 16
MAX_GONE_PIDS = 8
STOPPING = (EngineState.FAULTED, EngineState.PAUSING)


@dataclass(frozen=True)
class FailedStart:
    """Why the replacement of an engine core was not started; `kill`: the lost process may still run."""

    reason: str
    kill: bool


@dataclass
class Engine:
    """Engine core as the instance knows it. Times are in seconds of the instance's clock."""

    engine_id: int
    state: EngineState = EngineState.STARTING
    pid: int | None = None
    heard_pid: int | None = None  # the sender of the last report, also before the first report of all
    ranks: int = 0
    hooks: tuple[str, ...] = ()
    worker_hooks: tuple[str, ...] = ()
    worker_pids: tuple[int, ...] = ()
    unrebuildable: tuple[str, ...] = ()
    # the processes that are lost
    gone_pids: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_GONE_PIDS))  # late reports change nothing
    lost_ranks: int = 0
    pipeline_stages: int = 1
    # faults and recoveries
    fault: Fault | None = None
    fault_in_recovery: Fault | None = None
    last_error: str | None = None
    faults: int = 0
    recoveries: int = 0
    stopping_since: float = 0.0  # while faulted or pausing
    progressed: bool = False  # a step has ended well since the last recovery, as the last pause reported
    # workers
    sick_ranks: set[int] = field(default_factory=set)  # they get a new process in the next recovery
    worker_restarts: int = 0
    standbys: Standbys | None = None
    # replacements of the engine core
    restarts: int = 0
    restart_budget: Budget = field(default_factory=Budget)  # without the restarts that an operator ordered
    replacement_due_at: float = 0.0  # while restarting
    failed_start: FailedStart | None = None  # while restarting
    restart_command: str | None = None  # the operator's command to replace the engine core
    left_out_at: float = 0.0
    left_out_reason: str | None = None
    # set at run time, and outlasts the process
    runtime_state: bytes = b""  # the calls that a replacement repeats
    unrepeatable_state: str = ""  # what no call brings back
    # requests and injected faults
    suspects: int = 0
    ended_requests: int = 0
    armed: dict[str, float] = field(default_factory=dict)  # command ids without an answer, and since when
    poisons: tuple[InjectionSpec, ...] = ()  # armed for a request: in every replacement too

    def move(self, trigger: Trigger) -> None:
        """Change the state as the table of transitions says. Raises `IllegalTransition`."""
        self.state = next_state(self.state, trigger)

    def begin_to_stop(self, trigger: Trigger, now: float) -> None:
        """Change the state towards paused. Of several triggers the first starts the clock."""
        if self.state not in STOPPING:
            self.stopping_since = now
        self.move(trigger)

    def poison(self, spec: InjectionSpec) -> None:
        """Keep a fault that is armed for a request, at most the latest `MAX_POISONS`."""
        self.poisons = (*self.poisons, spec)[-MAX_POISONS:]

    def lose(self) -> None:
        """Forget the process that is lost, and everything that was known about the process."""
        self.move(Trigger.LOST)
        self.note_gone(self.heard_pid)
        self.pid, self.lost_ranks, self.ranks, self.worker_pids = None, self.size, 0, ()
        self.hooks = self.worker_hooks = self.unrebuildable = ()
        self.fault = self.fault_in_recovery = self.last_error = self.standbys = self.left_out_reason = None
        self.sick_ranks.clear()
        self.suspects = 0
        self.restarts += 1

    def note_gone(self, pid: int | None) -> None:
        """Remember that a process is lost, also a process that has never reported."""
        if pid is not None and pid not in self.gone_pids:
            self.gone_pids.append(pid)

    def may_be(self, pid: int) -> bool:
        """Return whether a process may be the present process: until that has reported, any that is not lost."""
        return pid == self.pid or (self.pid is None and pid not in self.gone_pids)

    def note_sick_rank(self, fault: Fault) -> None:
        """Mark the rank of a fault for a new process, where nothing in the present process can be trusted."""
        if fault.rank is not None and is_of_the_process(fault):
            self.sick_ranks.add(fault.rank)

    @property
    def size(self) -> int:
        """Return the number of ranks, also after the process is lost."""
        return self.ranks or self.lost_ranks

    @property
    def ranks_out(self) -> int:
        """Return how many ranks are sick or lost."""
        is_lost = self.state in (EngineState.RESTARTING, EngineState.LEFT_OUT)
        return self.size if is_lost else len(self.sick_ranks)


@dataclass
class LockstepGroup:
    """Engine cores that share collectives, with the open incident. `budgets` outlasts every incident."""

    group_id: int
    engines: tuple[Engine, ...]
    epoch: int = 0
    incident: Incident | None = None
    budgets: GroupBudgets = field(default_factory=GroupBudgets)
    last_command_id: str | None = None  # of the last recovery
    keepalive_at: float = 0.0  # when the engine cores were last told that the owner lives

    # ---- the engine cores

    @property
    def engine_ids(self) -> tuple[int, ...]:
        return tuple(e.engine_id for e in self.engines)

    @property
    def is_lockstep(self) -> bool:
        """Return whether the group has several engine cores, which wait for their peers."""
        return len(self.engines) > 1

    @property
    def is_single_rank(self) -> bool:
        """Return whether the group has a single rank, which waits for no peer."""
        return not self.is_lockstep and self.engines[0].ranks == 1

    @property
    def is_paused(self) -> bool:
        return all(e.state is EngineState.PAUSED for e in self.engines)

    @property
    def is_left_out(self) -> bool:
        return all(e.state is EngineState.LEFT_OUT for e in self.engines)

    @property
    def unrebuildable(self) -> tuple[str, ...]:
        """Return the collectives that a rebuild cannot bring back."""
        return tuple(what for e in self.engines for what in e.unrebuildable)

    def in_state(self, *states: EngineState) -> list[Engine]:
        return [e for e in self.engines if e.state in states]

    # ---- the incident, as far as one is open

    @property
    def fault(self) -> Fault | None:
        return self.incident.fault if self.incident else None

    @property
    def recovery(self) -> Recovery | None:
        return self.incident.recovery if self.incident else None

    @property
    def opened_at(self) -> float:
        """Return when the open incident began, `NOT_OPEN` without an incident."""
        return self.incident.opened_at if self.incident else NOT_OPEN

    @property
    def fruitless(self) -> Fruitless:
        """Return the repairs in vain; none in a search for a poison request, which ends by itself."""
        engine = self.representative
        return Fruitless() if engine.progressed or engine.suspects else self.budgets.fruitless

    @property
    def is_paused_by_operator(self) -> bool:
        return self.incident is not None and self.incident.paused_by_operator

    @property
    def needs_rebuild(self) -> bool:
        return self.incident is not None and self.incident.collectives_broken and not self.is_single_rank

    @property
    def needs_worker_restart(self) -> bool:
        """Return whether a rank needs a new process."""
        return any(e.sick_ranks for e in self.engines) or (self.fault is not None and is_of_the_process(self.fault))

    @property
    def representative(self) -> Engine:
        """Return the engine core that an event about the whole group names: the engine core of the deepest fault."""
        engine_id = self.fault.engine_id if self.fault is not None else None
        return next((e for e in self.engines if e.engine_id == engine_id), self.engines[0])

    def open_incident(self, now: float) -> Incident:
        """Return the open incident. Open an incident first where nothing was wrong until now."""
        self.incident = self.incident or Incident(opened_at=now, waiting_since=now)
        return self.incident

    def is_expected(self, fault: Fault) -> bool:
        """Return whether a command explains a fault: a hard pause breaks collectives, which a rank notices."""
        if self.incident is None or fault.fault_class is not FaultClass.COMMUNICATOR:
            return False
        is_hard_pause = self.incident.paused_by_operator and not self.incident.is_soft
        return is_hard_pause or self.incident.restart_command is not None

    def sick_ranks_of(self, engine: Engine) -> tuple[int, ...]:
        """Return the ranks that need a new process: all of them where no rank is known for a device error."""
        if not engine.sick_ranks and self.fault is not None and self.fault.engine_id == engine.engine_id:
            of_any_rank = self.fault.fault_class is FaultClass.DEVICE and self.fault.rank is None
            return tuple(range(engine.ranks)) if of_any_rank else ()
        return tuple(sorted(engine.sick_ranks))

    # ---- losses

    def lose(self, engine: Engine, now: float) -> None:
        """Forget the lost process of an engine core. In lockstep the replacement joins the present epoch.

        A pause by an operator outlasts the loss.
        """
        engine.lose()
        self.budgets.forget_retries()
        incident = self.open_incident(now)
        if self.is_lockstep:
            incident.collectives_broken = incident.awaits_join = True
            incident.restart_command = incident.retry_at = None
            incident.fault = self._deepest_of_the_others()
            return
        self.epoch = 0
        opened_at, paused = incident.opened_at, incident.paused_by_operator
        self.incident = Incident(opened_at, waiting_since=opened_at, paused_by_operator=paused)

    def leave_out(self, engine: Engine, reason: str, now: float) -> None:
        """Give up on an engine core that is lost. The incident is closed: the remaining engine cores serve on."""
        engine.move(Trigger.LEFT_OUT)
        engine.left_out_at, engine.left_out_reason = now, reason
        self.incident = None

    def _deepest_of_the_others(self) -> Fault | None:
        """Return the deepest fault of an engine core's own, which the loss of a peer does not explain."""
        deepest = None
        for fault in (e.fault for e in self.engines):
            if fault is not None and fault.fault_class is not FaultClass.COMMUNICATOR:
                deepest = deeper(deepest, fault)
        return deepest

    # ---- the status

    def status_of(self, engine: Engine, budgets: tuple[BudgetStatus, ...] = ()) -> EngineStatus:
        """Return the status of one engine of the group, with the budgets on which a try is spent."""
        return EngineStatus(
            engine_id=engine.engine_id,
            status=engine.state.on_the_wire,
            fault_info=UNSET if engine.fault is None else engine.fault.summary(),
            last_command_id=_optional(self.last_command_id),
            last_error=_optional(engine.last_error),
            state=engine.state,
            epoch=self.epoch,
            ranks=engine.ranks,
            lockstep_with=tuple(i for i in self.engine_ids if i != engine.engine_id),
            paused_by_operator=self.is_paused_by_operator,
            unrebuildable=engine.unrebuildable,
            pid=engine.pid,
            hooks=engine.hooks,
            worker_hooks=engine.worker_hooks,
            reason=self.incident.reason if self.incident else engine.left_out_reason,
            recoveries=engine.recoveries,
            worker_restarts=engine.worker_restarts,
            faults=engine.faults,
            restarts=engine.restarts,
            suspects=engine.suspects,
            ended_requests=engine.ended_requests,
            standbys=UNSET if engine.standbys is None else engine.standbys,
            unrepeatable_state=_optional(engine.unrepeatable_state or None),
            budgets=budgets,
            pipeline_stages=engine.pipeline_stages,
            sick_ranks=tuple(sorted(engine.sick_ranks)),
        )


def _optional(text: str | None) -> str | UnsetType:
    return UNSET if text is None else text


def make_groups(groups: Iterable[Iterable[int]]) -> tuple[LockstepGroup, ...]:
    """Return a group for each set of engine ids."""
    return tuple(LockstepGroup(i, tuple(Engine(e) for e in ids)) for i, ids in enumerate(groups))
