"""The machine of an engine core's sentinel: one fault from detection to resumption, as facts in and effects out.

Owns the pause of the busy loop: root cause, acknowledgements, commands, epochs. `rank_control` owns the ranks. Must
never wait, read a clock or know a host: the shell (`sentinel.engine`) owns threads and sockets, and performs every
effect before the next fact. Times are seconds on the shell's monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.rank_control import RankControl
from holdfast.core.engine_core.state import CommandQueue, Context, RankRegistry
from holdfast.core.faults.classification import fault_of
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.protocol import messages as m

REANNOUNCE_S = 2.0
# How long a fault that surfaced as a worker's reply waits for that worker's own, fuller account.
REPORT_WAIT_S = 2.0
_WORKER_LOST = "the process of a worker is gone"


class BusyLoop(enum.Enum):
    """State of the busy loop's thread."""

    RUNNING = enum.auto()
    FINDING_CAUSE = enum.auto()  # the error may only repeat what a rank is about to report
    CHECKING_WORKERS = enum.auto()
    STOPPING_RANKS = enum.auto()  # acknowledgements are due, or a stalled rank is searched
    STUDYING_FAULT = enum.auto()
    PAUSED = enum.auto()  # announced; waits for a command
    RECOVERING = enum.auto()
    ENDED = enum.auto()


@dataclass
class Pause:
    """A pause of the busy loop, from the error of a step until a recovery succeeds."""

    began_at: float
    raised: facts.StepRaised | None = None  # none: the engine core joins a lockstep group
    fault: Fault | None = None  # none: the busy loop was only told to pause
    is_studied: bool = False
    cause_awaited_until: float = 0.0
    announce_at: float = 0.0
    recovery: m.RecoverEngine | None = None


class EngineCoreMachine:
    """Decisions of the sentinel of an engine core. `wall_clock` dates faults."""

    def __init__(
        self, engine_id: int, config: HoldfastConfig, wall_clock: Callable[[], float], joining_epoch: int | None = None
    ) -> None:
        self._context = Context(engine_id, config, wall_clock)
        self._ranks = RankControl(self._context, joining_epoch or 0)
        self._commands = CommandQueue()
        self._pause = Pause(0.0)
        self.busy_loop = BusyLoop.RUNNING

    # ---- what the shell reads

    @property
    def epoch(self) -> int:
        """The present epoch: of the last recovery that began."""
        return self._ranks.containment.epoch

    @property
    def registry(self) -> RankRegistry:
        """The ranks that have reported."""
        return self._ranks.registry

    @property
    def is_searching(self) -> bool:
        """Whether a stalled rank is searched: every look counts then, also a look that finds no stall."""
        return self._ranks.is_searching

    @property
    def returning(self) -> frozenset[int]:
        """The ranks that are there again after a loss of their node, and have not said yet that they stopped."""
        return frozenset(self._ranks.returning)

    def pids_to_watch(self) -> Mapping[int, int]:
        """Return the process ids, by rank, of the ranks that are not declared hung."""
        return self._ranks.pids_to_watch()

    def wakes_at(self) -> float:
        """Return the time by which `TimePassed` is due; infinity when nothing is due by time."""
        due = [self._ranks.containment.acknowledgement_due_at, self._ranks.containment.kill_due_at]
        match self.busy_loop:
            case BusyLoop.RUNNING:
                due.append(self._ranks.containment.finish_due_at)
            case BusyLoop.FINDING_CAUSE:
                due.append(self._pause.cause_awaited_until)
            case BusyLoop.STOPPING_RANKS:
                due.append(self._ranks.containment.awaited_until)
            case BusyLoop.PAUSED:
                due.append(max(self._pause.announce_at, self._ranks.containment.awaited_until))
        return min(due)

    # ---- facts

    def handle(self, fact: facts.Fact, now: float) -> list[fx.Effect]:
        """Take a fact; return the effects to perform, in order."""
        self._context.effects = []
        if isinstance(fact, m.ToEngine):
            self._from_client(fact, now)
        elif isinstance(fact, m.FromWorker):
            self._from_worker(fact, now)
        elif isinstance(fact, facts.BusyLoopFact):
            self._from_busy_loop(fact, now)
        else:
            self._from_shell(fact, now)
        self._advance(now)
        return self._context.effects

    def _from_client(self, command: m.ToEngine, now: float) -> None:
        self._commands.heard(now)
        match command:
            case m.RecoverEngine() | m.EndEngine():
                self._commands.put(command)
            case m.PauseEngine():
                self._ranks.pause(command, now)
            case m.ArmFault():
                self._ranks.arm(command.command_id, command.spec)
            case m.ChangeSettings():
                self._context.configure(command.settings)
            case m.CoordinatorReplaced():  # an engine core that is still starting has told the old one nothing
                self._context.do_on_host(fx.IntroduceToCoordinator())
            case _:  # ClientLost
                self._context.do_on_host(fx.DropRequestsOf(command.client_index))

    def _from_worker(self, report: m.FromWorker, now: float) -> None:
        """Take a report of a rank; ignore an old process, and a process that has not introduced itself."""
        if isinstance(report, m.WorkerAttached):
            self._ranks.attached(report)
            return
        if not self.registry.is_present(report.rank, report.pid):
            return
        match report:
            case m.RankFaulted():
                self._ranks.rank_faulted(report, now)
            case m.CollectivesBroken():
                self._ranks.stopped(report)
            case m.WorkerAnswered():
                self._context.answer(report.command_id, report.refused)
            case _:  # RankStuck
                self._ranks.rank_stuck(report, now)

    def _from_shell(self, fact: facts.ShellFact, now: float) -> None:
        match fact:
            case facts.HostAttached():
                self._context.host = fact
            case facts.RankLost():
                self._ranks.rank_lost(fact, now)
            case facts.RanksStarted():
                self._ranks.started(fact.pids)
            case facts.RanksReturned():
                self._ranks.returned(fact.pids)
            case facts.StallsSeen():
                self._ranks.stalls_seen(fact, now)
            case facts.EvidenceKept():
                self._ranks.evidence_kept(fact.stall, now)
            case facts.ArmingUndelivered():
                self._ranks.arming_undelivered(fact.command)
            case _:  # TimePassed
                self._ranks.declare_overdue(now)
                self._ranks.kill_again(now)
                if self.busy_loop is BusyLoop.RUNNING:  # a paused one waits for no step
                    self._ranks.break_late_finish(now)

    def _from_busy_loop(self, fact: facts.BusyLoopFact, now: float) -> None:
        match fact:
            case facts.JoinAwaited():
                self._pause, self.busy_loop = Pause(now), BusyLoop.STOPPING_RANKS
            case facts.StepRaised():
                self._step_raised(fact, now)
            case facts.WorkersChecked():
                self._workers_checked(fact, now)
            case facts.FaultStudied():
                self.busy_loop = BusyLoop.STOPPING_RANKS
            case facts.RecoveryFinished():
                self._recovery_finished(fact, now)
            case _:  # RecoveryFailed
                self._recovery_failed(fact, now)

    def _advance(self, now: float) -> None:
        """Take the busy loop as far as the facts and the time allow."""
        if self.busy_loop is BusyLoop.FINDING_CAUSE:
            self._find_cause(now)
        if self.busy_loop is BusyLoop.STOPPING_RANKS and now >= self._ranks.containment.awaited_until:
            self._ranks_stopped(now)
        if self.busy_loop is BusyLoop.PAUSED:
            self._follow_next_command(now)

    # ---- the pause, from the error to the resumption

    def _step_raised(self, raised: facts.StepRaised, now: float) -> None:
        wait_s = REPORT_WAIT_S if raised.is_workers_reply and not raised.is_interrupt else 0.0
        self._pause = Pause(now, raised, cause_awaited_until=now + wait_s)
        self.busy_loop = BusyLoop.FINDING_CAUSE

    def _find_cause(self, now: float) -> None:
        """Prefer the rank's own account: a reply carries only a text of the error, or hides the error."""
        reported, raised = self._ranks.containment.fault, self._pause.raised
        if reported is None and now < self._pause.cause_awaited_until:
            return
        if reported is not None or raised is None or raised.is_interrupt:
            self._cause_found(reported, now)
        else:
            self._release(BusyLoop.CHECKING_WORKERS, fx.CheckWorkers())

    def _workers_checked(self, checked: facts.WorkersChecked, now: float) -> None:
        assert self._pause.raised is not None
        self._cause_found(self._own_fault(self._pause.raised.error, checked.lost_ranks), now)

    def _cause_found(self, fault: Fault | None, now: float) -> None:
        """Continue with the root cause; None when the busy loop was only told to pause."""
        self._pause.fault = fault
        self.busy_loop = BusyLoop.STOPPING_RANKS
        if fault is not None and self._ranks.leaves_peers_waiting(fault):
            self._ranks.break_collectives(now)

    def _ranks_stopped(self, now: float) -> None:
        """Have the fault studied once, then announce the pause."""
        if not self._pause.is_studied:
            self._pause.is_studied = True
            fault = self._ranks.containment.fault or self._pause.fault
            self._release(BusyLoop.STUDYING_FAULT, fx.StudyFault(fault))
            return
        self._commands.heard(now)
        self._announce(now)

    def _announce(self, now: float) -> None:
        """Announce the pause, and again every `REANNOUNCE_S`: an announcement that was heard before changes nothing."""
        self._pause.announce_at = now + REANNOUNCE_S
        broken = self._ranks.containment.broken
        self._release(BusyLoop.PAUSED, fx.AnnouncePause(self.epoch, self._pause.fault, broken))

    def _follow_next_command(self, now: float) -> None:
        command = self._commands.next(self.epoch)
        # A hard pause of a paused busy loop breaks collectives: acknowledgements are due again.
        if command is None and now >= max(self._pause.announce_at, self._ranks.containment.awaited_until):
            command = self._commands.end_when_silent(self._silence_bound_s, now)
            if command is None:
                self._announce(now)
        match command:
            case m.RecoverEngine():
                self._begin_recovery(command)
            case m.EndEngine():
                self._release(BusyLoop.ENDED, fx.EndBusyLoop(command.reason))

    @property
    def _silence_bound_s(self) -> float:
        """How long a paused busy loop waits for a client that says nothing."""
        return self._context.config.engine_recovery_timeout_s + self._context.config.containment_timeout_s

    def _begin_recovery(self, command: m.RecoverEngine) -> None:
        self._ranks.containment.begin(command.epoch)
        self._pause.recovery = command
        self._context.do(fx.RelearnDeadlines())
        self._release(BusyLoop.RECOVERING, fx.RunRecovery(command))

    def _recovery_finished(self, finished: facts.RecoveryFinished, now: float) -> None:
        command = self._recovery_under_way()
        self.busy_loop = BusyLoop.RUNNING
        self._context.tell_client(
            m.EngineRecovered(
                engine_id=self._context.engine_id,
                command_id=command.command_id,
                epoch=command.epoch,
                report=msgspec.structs.replace(finished.report, paused_s=now - self._pause.began_at),
                worker_pids=tuple(self.registry.pids_here().values()),
            )
        )

    def _recovery_failed(self, failed: facts.RecoveryFailed, now: float) -> None:
        """Pause again; peers that wait in a collective of the failed recovery are let go first."""
        command = self._recovery_under_way()
        self.busy_loop = BusyLoop.STOPPING_RANKS
        if self._ranks.has_peers():
            self._ranks.break_collectives(now)
        fault = self._own_fault(failed.error, failed.lost_ranks)
        self._context.tell_client(
            m.RecoveryAborted(
                engine_id=self._context.engine_id, command_id=command.command_id, epoch=command.epoch, fault=fault
            )
        )

    def _recovery_under_way(self) -> m.RecoverEngine:
        assert self._pause.recovery is not None
        return self._pause.recovery

    def _own_fault(self, error: Exception, lost_ranks: tuple[int, ...]) -> Fault:
        """Return the fault of an error of the busy loop; a lost worker explains more than the error."""
        fault = fault_of(
            error,
            self._context.classifier,
            engine_id=self._context.engine_id,
            rank=getattr(error, "rank", None),
            phase=getattr(error, "phase", None),
            at=self._context.wall_clock(),
        )
        if lost_ranks:
            return msgspec.structs.replace(
                fault, fault_class=FaultClass.WORKER_LOST, class_reason=_WORKER_LOST, rank=lost_ranks[0]
            )
        return fault

    def _release(self, then: BusyLoop, task: fx.Task) -> None:
        self.busy_loop = then
        self._context.do(fx.Release(task))
