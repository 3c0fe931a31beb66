"""Ranks of one engine core: which must stop, which stall, which are lost, hung or told to break their collectives.

The half of the machine beside the busy loop. One stalled rank at a time is searched, because ranks wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.state import Containment, Context, RankRegistry, RequestFaults
from holdfast.core.faults.faults import Fault, FaultClass, hung
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall

KILL_AGAIN_S = 1.0  # the death of a killed process is told within milliseconds
PROBE_S = 0.4  # until a rank whose collectives were broken has left its step, if it only waited in one


@dataclass
class StallSearch:
    """Search for a hung rank, a single search at a time. `declared`: process ids of ranks that were declared hung."""

    declared: set[int] = field(default_factory=set)
    _suspects: dict[int, Stall] = field(default_factory=dict)
    _until: float = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether ranks are suspected that may still leave their step."""
        return bool(self._suspects)

    @property
    def suspects(self) -> list[int]:
        """Ranks that are suspected, in ascending order."""
        return sorted(self._suspects)

    def begin(self, stalls: Sequence[Stall], now: float) -> float:
        """Suspect the stalled ranks; return the time at which the search is decided."""
        self._suspects = {stall.rank: stall for stall in stalls}
        self._until = now + PROBE_S
        return self._until

    def decide(self, stalls: Sequence[Stall], now: float) -> list[Stall] | None:
        """Return the stalls of hung ranks, which ends the search; None while the search goes on.

        A stopped process is certain at once. Otherwise suspects are hung that are still in the same call at the end.
        """
        certain = [stall for stall in stalls if stall.is_certain]
        if not certain and now < self._until:
            return None
        still = [s for s in stalls if (was := self._suspects.get(s.rank)) is not None and s.call == was.call]
        self._suspects.clear()
        return certain or still


# Beyond a search's end: two looks at the ranks' progress, so that the search is decided before the pause is announced.
SEARCH_MARGIN_S = 0.2


class RankControl:
    """Rules for the ranks of an engine core; the half of the machine beside the busy loop."""

    def __init__(self, context: Context, epoch: int) -> None:
        self.registry = RankRegistry()
        self.containment = Containment(epoch)
        self.returning: set[int] = set()
        self._context = context
        self._armed = RequestFaults()
        self._search = StallSearch()
        self._evidence_due: dict[int, Fault] = {}  # by process id: hung ranks that are killed once evidence is kept
        self._killed: dict[int, int] = {}  # by rank: the process that was killed last, whose death is expected
        self._said_unrebuildable = False

    @property
    def is_searching(self) -> bool:
        """Whether a stalled rank is searched."""
        return self._search.is_under_way

    def pids_to_watch(self) -> Mapping[int, int]:
        """Return the process ids, by rank, of the ranks of this node that are not declared hung."""
        return {rank: pid for rank, pid in self.registry.pids_here().items() if pid not in self._search.declared}

    # ---- containment

    def has_peers(self) -> bool:
        """Return True when a peer may wait in a collective for a rank of the engine core."""
        return len(self.registry.ranks()) > 1 or self._context.in_lockstep

    def leaves_peers_waiting(self, fault: Fault) -> bool:
        """Return True when peers would wait for the engine core, or a lost rank, until a host timeout."""
        return (fault.fault_class is FaultClass.WORKER_LOST and self.has_peers()) or self._context.in_lockstep

    def break_collectives(self, now: float) -> None:
        """Let no peer wait in a collective of the present epoch; ranks stop and have to acknowledge."""
        acknowledge_by = now + self._context.config.acknowledge_timeout_s
        ranks = self.containment.break_ranks(self.registry.living(), acknowledge_by)
        self._context.do_on_host(fx.BreakOwnCollectives())
        for rank in sorted(ranks):
            self._context.do(fx.SendToRank(rank, m.BreakCollectives(epoch=self.containment.epoch)))

    def pause(self, command: m.PauseEngine, now: float) -> None:
        """Pause at the next step boundary; a soft pause lets ranks finish their step. Ignore another epoch."""
        if command.epoch != self.containment.epoch:
            return
        if not command.soft and self.has_peers():
            self.break_collectives(now)
        self._interrupt()

    def _interrupt(self) -> None:
        self._context.do_on_host(fx.InterruptBusyLoop())

    # ---- what ranks report

    def attached(self, report: m.WorkerAttached) -> None:
        """Note a new process of a rank, and arm in the process the faults of requests."""
        is_new = not self.registry.is_present(report.rank, report.pid)
        if not self.registry.note(report):
            return
        if is_new:
            self.containment.renew(report.rank)
        for command in self._armed.of_rank(report.rank):
            self._context.do(fx.SendToRank(report.rank, command))

    def started(self, pids: Mapping[int, int]) -> None:
        """Take new processes of ranks as the present processes, before the processes report."""
        for rank, pid in pids.items():
            if not self.registry.is_present(rank, pid):
                self.registry.expect(rank, pid)
                self.containment.renew(rank)

    def returned(self, pids: Mapping[int, int]) -> None:
        """Count ranks among the living again, and have the ranks stop; may be repeated until the ranks have.

        A recovery is under way, to the present epoch: what a returned rank still does belongs to an epoch before.
        """
        for rank, pid in pids.items():
            self.registry.take_back(rank, pid)
            self.containment.renew(rank)
            self.returning.add(rank)
            self._context.do(fx.SendToRank(rank, m.BreakCollectives(epoch=self.containment.epoch - 1)))

    def stopped(self, report: m.CollectivesBroken) -> None:
        """Note that a rank has stopped, and waits in no collective."""
        self.returning.discard(report.rank)
        self.containment.acknowledged(report.rank, report.epoch)

    def rank_faulted(self, report: m.RankFaulted, now: float) -> None:
        """Take a rank's own account, or the finding about a rank that reports nothing."""
        if report.epoch != self.containment.epoch:
            return
        finish_by = now + self._context.config.acknowledge_timeout_s if report.finishes else None
        is_news = self.containment.rank_faulted(report.rank, report.fault, finish_by)
        if is_news:
            engine_id = self._context.engine_id
            self._context.tell_client(m.EngineFaulted(engine_id=engine_id, epoch=report.epoch, fault=report.fault))
        has_to_break = not report.finishes and (is_news or not self.containment.broken)
        if self.has_peers() and (is_news or has_to_break):
            if has_to_break:
                self.break_collectives(now)
            self._interrupt()  # only the output rank's failures reach the busy loop, and an idle one notices nothing

    def break_late_finish(self, now: float) -> None:
        """Break collectives where a step does not end although its failed rank takes part."""
        if now >= self.containment.finish_due_at:
            bound_s = self._context.config.acknowledge_timeout_s
            text = f"a step with a failed rank did not end within {bound_s:g} s; its collectives are broken"
            self._context.do(fx.Log(text))
            self.break_collectives(now)
            self._interrupt()

    def rank_stuck(self, report: m.RankStuck, now: float) -> None:
        """Kill a rank that does not leave a broken collective."""
        why = f"did not leave {report.collective} after collectives were broken; declared hung"
        self._kill(self._hung(report.rank, why), report.rank, now)

    # ---- ranks that report nothing

    def declare_overdue(self, now: float) -> None:
        """Declare ranks hung that did not acknowledge in time."""
        for rank in sorted(self.containment.overdue(now)):
            bound_s = self._context.config.acknowledge_timeout_s
            why = f"did not acknowledge within {bound_s:g} s that it stopped; declared hung"
            self._kill(self._hung(rank, why), rank, now)

    def rank_lost(self, lost: facts.RankLost, now: float) -> None:
        """Report the death of a rank, unless the rank was killed; end the busy loop. Ignore an old process."""
        self.registry.note_gone(lost.rank, lost.pid)
        if not self.registry.is_present(lost.rank, lost.pid):
            return
        self.containment.died(lost.rank)
        epoch = self.containment.epoch
        if self._killed.get(lost.rank) != lost.pid:  # else the reason for the kill is reported, and says more
            self.rank_faulted(m.RankFaulted(rank=lost.rank, epoch=epoch, fault=self._loss(lost)), now)
        self._interrupt()  # also without peers: nothing else would end the busy loop

    def _kill(self, fault: Fault, rank: int, now: float) -> None:
        """Report a hung rank and kill the process: the death ends every wait for the rank."""
        epoch = self.containment.epoch
        self.rank_faulted(m.RankFaulted(rank=rank, epoch=epoch, fault=fault), now)
        self._killed[rank] = self.registry.pids()[rank]
        self._end(rank, now)

    def kill_again(self, now: float) -> None:
        """Kill each rank again whose death is not told in time: a kill may fail."""
        for rank in self.containment.still_alive(now):
            self._end(rank, now)

    def _end(self, rank: int, now: float) -> None:
        self.containment.kill(rank, now + KILL_AGAIN_S)
        self._context.do_on_host(fx.KillRank(rank))

    def _hung(self, rank: int, why: str) -> Fault:
        return hung(self._context.engine_id, rank, why, self._context.wall_clock())

    def _loss(self, lost: facts.RankLost) -> Fault:
        assigned = self._context.classifier.of_exit(lost.exit_code)
        return Fault(
            fault_class=assigned.fault_class,
            class_reason=assigned.reason,
            error_type="WorkerLost",
            message=f"the process of rank {lost.rank} is gone: {lost.how}",
            engine_id=self._context.engine_id,
            rank=lost.rank,
            at=self._context.wall_clock(),
        )

    # ---- ranks that make no progress

    def stalls_seen(self, seen: facts.StallsSeen, now: float) -> None:
        """Declare a rank hung that is certainly the cause; otherwise break collectives to find the cause."""
        stalls = list(seen.stalls)
        if not (stalls or self.is_searching) or not self._may_declare_hung(seen):
            return
        if self.is_searching:
            self._decide_search(stalls, now)
        elif stalls[0].is_certain or not self.has_peers():
            self._declare_hung(stalls)
        else:
            self._begin_search(stalls, now)

    def _begin_search(self, stalls: list[Stall], now: float) -> None:
        until = self._search.begin(stalls, now)
        suspects = self._search.suspects
        text = f"rank(s) {suspects} make no progress; breaking collectives to find the stalled rank"
        self._context.do(fx.Log(text))
        self.containment.search(until + SEARCH_MARGIN_S)
        self.break_collectives(now)

    def _decide_search(self, stalls: list[Stall], now: float) -> None:
        found = self._search.decide(stalls, now)
        if found:
            self._declare_hung(found)
        elif found is not None:
            self.containment.end_search()

    def _may_declare_hung(self, seen: facts.StallsSeen) -> bool:
        """Return False where collectives cannot be rebuilt: a kill would end the instance, the host's bound decides."""
        can_rebuild = seen.is_rebuildable and self.registry.can_rebuild()
        if self._context.host is None or not self.has_peers() or can_rebuild:
            return True
        if not self._said_unrebuildable:
            text = "ranks make no progress; no rank is declared hung, because their collectives cannot be rebuilt"
            self._context.do(fx.Log(text))
        self._said_unrebuildable = True
        return False

    def _declare_hung(self, stalls: list[Stall]) -> None:
        """Have the evidence of hung ranks kept; the ranks are killed after that."""
        for stall in stalls:
            fault = self._stalled(stall)
            self._search.declared.add(stall.pid)
            self._evidence_due[stall.pid] = fault
            self._context.do(fx.Log(fault.message, is_error=True))
            self._context.do(fx.KeepEvidence(stall))
        self._context.do(fx.RelearnDeadlines())  # the others may still be in a step in which they waited

    def _stalled(self, stall: Stall) -> Fault:
        call = stall.call
        phase, step = (call.phase, call.step) if call is not None else (None, None)
        why, at = f"stalled: {stall.reason}", self._context.wall_clock()
        return hung(self._context.engine_id, stall.rank, why, at, phase=phase, step=step)

    def evidence_kept(self, stall: Stall, now: float) -> None:
        """Kill a hung rank, unless a new process has taken its place; end the search after the last rank."""
        fault = self._evidence_due.pop(stall.pid, None)
        if fault is not None and self.registry.is_present(stall.rank, stall.pid):
            self._kill(fault, stall.rank, now)
        if not self._evidence_due:
            self.containment.end_search()

    # ---- injected faults

    def arm(self, command_id: str, spec: InjectionSpec) -> None:
        """Arm a fault in the engine core, or pass the command on to the rank, which answers."""
        context = self._context
        if context.host is None:
            context.answer(command_id, "the engine core is still starting")
        elif not spec.phase.in_worker:
            context.do(fx.ArmEngineCore(spec))
            context.answer(command_id, None)
        elif spec.rank not in self.registry.ranks():
            context.answer(command_id, f"engine {context.engine_id} has no rank {spec.rank}")
        else:
            command = m.ArmWorkerFault(command_id=command_id, spec=spec)
            self._armed.keep(command)
            context.do(fx.ArmRank(command))

    def arming_undelivered(self, command: m.ArmWorkerFault) -> None:
        """Refuse the command of an operator, because the rank is not reached."""
        self._armed.forget(command)
        self._context.answer(command.command_id, f"rank {command.spec.rank} did not accept the command")
