"""What an instance knows of its engines and of the lockstep groups that they form.

A lockstep group is the set of engines that share collectives: they pause together, recover together under
one epoch and go on together. An engine without such peers is a group of one. Pure data with its own
small moves; what follows from them is the `Instance`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast.core.faults.faults import Fault, FaultClass, deeper, is_of_the_process
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.poison.numerics import Named, named_by
from holdfast.core.protocol.events import EngineView, StandbyView
from holdfast.core.states import EngineState, Trigger, next_state

MAX_POISONS = 16
MAX_NAMED = 16
STOPPING = (EngineState.FAULTED, EngineState.PAUSING)


@dataclass
class Engine:
    """One engine core."""

    engine_id: int
    state: EngineState = EngineState.STARTING
    pid: int | None = None
    ranks: int = 0
    lost_ranks: int = 0  # of the process that is gone
    hooks: tuple[str, ...] = ()
    worker_hooks: tuple[str, ...] = ()
    unrebuildable: tuple[str, ...] = ()
    fault: Fault | None = None
    fault_in_recovery: Fault | None = None
    last_error: str | None = None
    recoveries: int = 0
    faults: int = 0
    armed: dict[str, float] = field(default_factory=dict)
    worker_pids: tuple[int, ...] = ()
    lost_pid: int | None = None  # of the process that is gone
    restarts: int = 0
    restarted_at: tuple[float, ...] = ()  # unasked
    asked_restart: str | None = None  # the command that asks for another process in its place
    sick_ranks: set[int] = field(default_factory=set)  # they get a new process in the next recovery
    worker_restarts: int = 0
    standbys: StandbyView | None = None
    stopping_since: float = 0.0  # while it is faulted or pausing
    suspects: int = 0  # of its requests
    poisons: tuple[InjectionSpec, ...] = ()  # armed for a request: in every process that takes its place too
    ended_requests: int = 0
    left_out_at: float = 0.0  # while it is left out

    def move(self, trigger: Trigger) -> None:
        self.state = next_state(self.state, trigger)

    def begin_to_stop(self, trigger: Trigger, now: float) -> None:
        """Move towards standing still. Of several reasons the first starts the clock."""
        if self.state not in STOPPING:
            self.stopping_since = now
        self.move(trigger)

    def poison(self, spec: InjectionSpec) -> None:
        self.poisons = (*self.poisons, spec)[-MAX_POISONS:]

    def lose(self) -> None:
        """Its process is gone, with everything that was known of it."""
        self.move(Trigger.LOST)
        self.lost_pid = self.pid if self.pid is not None else self.lost_pid
        self.pid, self.lost_ranks, self.ranks, self.worker_pids = None, self.size, 0, ()
        self.hooks = self.worker_hooks = self.unrebuildable = ()
        self.fault = self.fault_in_recovery = self.last_error = self.standbys = None
        self.sick_ranks.clear()
        self.suspects = 0
        self.restarts += 1

    @property
    def size(self) -> int:
        """How many ranks it has, or had before its process was gone."""
        return self.ranks or self.lost_ranks

    @property
    def ranks_out(self) -> int:
        """How many of its ranks are sick or gone."""
        is_gone = self.state in (EngineState.RESTARTING, EngineState.LEFT_OUT)
        return self.size if is_gone else len(self.sick_ranks)

    @property
    def is_contained(self) -> bool:
        """Whether it stands still, or will never move again."""
        return self.state is EngineState.PAUSED


@dataclass
class LockstepGroup:
    """Engines that share collectives, and the incident that they are in together."""

    group_id: int
    engines: tuple[Engine, ...]
    epoch: int = 0
    fault: Fault | None = None  # the deepest of the incident
    reason: str | None = None
    began_at: float | None = None  # the incident's; none while nothing is wrong
    waiting_since: float = 0.0  # from when on the recovery timeout counts
    command_id: str | None = None  # of the recovery under way
    command_at: float = 0.0
    last_command_id: str | None = None
    retried_at: tuple[float, ...] = ()
    unknown_retried_at: tuple[float, ...] = ()  # of those, the ones for a fault of class unknown
    named: tuple[Named, ...] = ()  # what numerical faults named in the processes of now
    restarted_at: tuple[float, ...] = ()  # when worker restarts were ordered
    failed_restarts: int = 0  # of this incident, one after another
    replacing: bool = False  # the recovery under way gives ranks a new process
    asked: str | None = None  # the command that asks for a restart of healthy ranks
    retry_at: float | None = None  # when to decide anew, after a pause between tries
    joins: bool = False  # a process that took another one's place has met none of its peers yet
    search_progressed: bool = False  # the fault has brought the search for a guilty request on
    broken: bool = False  # collectives were broken and have to be rebuilt
    rebuilding: bool = False  # the recovery under way has a rendezvous
    paused_by_hand: bool = False
    soft: bool = False  # the pause by hand may still wait for a step boundary
    affirmed_at: float = 0.0  # when the engines last heard that somebody still lives

    @property
    def engine_ids(self) -> tuple[int, ...]:
        return tuple(e.engine_id for e in self.engines)

    @property
    def ranks(self) -> int:
        return sum(e.ranks for e in self.engines)

    def in_state(self, *states: EngineState) -> list[Engine]:
        return [e for e in self.engines if e.state in states]

    @property
    def stands_paused(self) -> bool:
        return all(e.is_contained for e in self.engines)

    @property
    def is_alone(self) -> bool:
        """Whether there is one rank only, which waits for nobody."""
        return len(self.engines) == 1 and self.ranks == 1

    @property
    def needs_rebuild(self) -> bool:
        return self.broken and not self.is_alone

    @property
    def wants_restart(self) -> bool:
        """Whether a rank needs a new process."""
        return any(e.sick_ranks for e in self.engines) or (self.fault is not None and is_of_the_process(self.fault))

    @property
    def unrebuildable(self) -> tuple[str, ...]:
        return tuple(what for e in self.engines for what in e.unrebuildable)

    def open_incident(self, now: float) -> bool:
        """Whether nothing was wrong until now."""
        opens = self.began_at is None
        if opens:
            self.began_at = self.waiting_since = now
        return opens

    def is_expected(self, fault: Fault) -> bool:
        """Whether somebody asked for what happened: a hard pause breaks collectives, and a rank notices."""
        breaks_by_hand = (self.paused_by_hand and not self.soft) or self.asked is not None
        return breaks_by_hand and fault.fault_class is FaultClass.COMMUNICATOR

    def sick_ranks_of(self, engine: Engine) -> tuple[int, ...]:
        """The ranks that need a new process: every one where nobody knows whose device failed."""
        if not engine.sick_ranks and self.fault is not None and self.fault.engine_id == engine.engine_id:
            of_any_rank = self.fault.fault_class is FaultClass.DEVICE and self.fault.rank is None
            return tuple(range(engine.ranks)) if of_any_rank else ()
        return tuple(sorted(engine.sick_ranks))

    def blame(self, engine: Engine, fault: Fault) -> bool:
        """Take what an engine reports into the incident; true when it goes deeper than what was known."""
        if fault.rank is not None and is_of_the_process(fault):
            engine.sick_ranks.add(fault.rank)
        news = deeper(self.fault, fault) is fault
        if news:
            self.fault = fault
        return news

    def note_named(self, now: float) -> None:
        """It is tried again after a numerical fault that names requests; bounded, the latest stay."""
        if names := named_by(self.fault):
            self.named = (*self.named, (now, names))[-MAX_NAMED:]

    def forgive(self, tries: int) -> None:
        """The cause of the last tries is gone: they do not count any more."""
        self.named = ()
        if self.retried_at:
            self.retried_at = self.retried_at[:-tries]
            self.unknown_retried_at = tuple(at for at in self.unknown_retried_at if at in self.retried_at)
        else:
            self.restarted_at = self.restarted_at[:-tries]

    def close_incident(self) -> None:
        self.fault = self.reason = self.command_id = self.began_at = None
        self.broken = self.rebuilding = self.paused_by_hand = self.soft = self.replacing = False
        self.asked = self.retry_at = None
        self.joins = False
        self.search_progressed = False
        self.failed_restarts = 0

    @property
    def is_lockstep(self) -> bool:
        """Whether several engines wait for each other."""
        return len(self.engines) > 1

    def lose(self, engine: Engine, now: float) -> None:
        """An engine of it is another process from now on. Alone it knows no epoch yet, else it joins this one.

        That somebody has paused the group stays so.
        """
        engine.lose()
        self.open_incident(now)
        if self.is_lockstep:
            self.broken, self.joins, self.asked, self.retry_at = True, True, None, None
            self._forget_fault_of_the_lost()
            return
        began_at = now if self.began_at is None else self.began_at
        paused_by_hand = self.paused_by_hand
        self.close_incident()
        self.epoch, self.paused_by_hand = 0, paused_by_hand
        self.forget_retries()
        self.began_at = self.waiting_since = began_at

    def leave_out(self, engine: Engine, reason: str, now: float) -> None:
        """Nobody takes the place of one that is lost. What was wrong is over: the others go on."""
        engine.move(Trigger.LEFT_OUT)
        engine.left_out_at = now
        self.close_incident()
        self.reason = reason

    @property
    def is_left_out(self) -> bool:
        return all(e.state is EngineState.LEFT_OUT for e in self.engines)

    @property
    def is_joining(self) -> bool:
        """Whether a newcomer is to be let in, and nothing else is wrong than what the loss has broken."""
        is_consequence = self.fault is None or self.fault.fault_class is FaultClass.COMMUNICATOR
        return self.joins and is_consequence

    def forget_retries(self) -> None:
        """What is retried from now on is retried in another process."""
        self.retried_at = self.unknown_retried_at = ()
        self.named = ()

    def _forget_fault_of_the_lost(self) -> None:
        """What was wrong with a process is gone with it; what is wrong with its peers is not."""
        self.forget_retries()
        self.fault = None
        for fault in (e.fault for e in self.engines):
            if fault is not None and fault.fault_class is not FaultClass.COMMUNICATOR:
                self.fault = deeper(self.fault, fault)

    def view_of(self, engine: Engine) -> EngineView:
        return EngineView(
            engine_id=engine.engine_id,
            state=engine.state,
            epoch=self.epoch,
            pid=engine.pid,
            ranks=engine.ranks,
            lockstep_with=tuple(i for i in self.engine_ids if i != engine.engine_id),
            hooks=engine.hooks,
            worker_hooks=engine.worker_hooks,
            unrebuildable=engine.unrebuildable,
            fault=engine.fault,
            reason=self.reason,
            paused_by_hand=self.paused_by_hand,
            last_command_id=self.last_command_id,
            last_error=engine.last_error,
            recoveries=engine.recoveries,
            worker_restarts=engine.worker_restarts,
            standbys=engine.standbys,
            faults=engine.faults,
            restarts=engine.restarts,
            suspects=engine.suspects,
            ended_requests=engine.ended_requests,
        )


def make_groups(groups: Iterable[Iterable[int]]) -> tuple[LockstepGroup, ...]:
    """One group for each set of engine ids."""
    return tuple(LockstepGroup(i, tuple(Engine(e) for e in ids)) for i, ids in enumerate(groups))
