"""The laws of the machine of each simulated engine core, checked at every fact."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from holdfast.chaos.simulation.sentinels.engine_core import EngineProcess
from holdfast.chaos.simulation.sentinels.plan import Kind
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core import state as engine_core_state
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m

STOPS = (fx.BreakOwnCollectives, fx.InterruptBusyLoop)
LOST = FaultClass.WORKER_LOST
KILLED_AGAIN_S = 3.0

Run = Any  # of the module `run`, which imports this one


class MachineLaws:
    """Laws of the machine of an engine core, checked at each of its facts."""

    def __init__(self, run: Run, engine: EngineProcess) -> None:
        self._run, self._engine, self._machine = run, engine, engine.sentinel._machine
        self._condemned: set[tuple[int, int]] = set()  # declared hung: owing nothing, also if a kill fails
        self._present: dict[int, int] = {}
        self._old: set[tuple[int, int]] = set()
        self.attached: set[tuple[int, int]] = set()
        self._kills: Counter[tuple[int, int]] = Counter()
        self._dying: dict[tuple[int, int], float] = {}  # killed, and when last; the death is not told yet
        handle = self._machine.handle

        def checked(fact: Any, now: float) -> Any:
            epoch = self._machine.epoch
            self._note(fact)
            effects = handle(fact, now)
            run.law(self._machine.epoch >= epoch, "an epoch never goes back")
            self._check_fact(fact, epoch, effects)
            self._check_effects(epoch, effects)
            self._check_deaths(fact, effects, now)
            return effects

        self._machine.handle = checked

    def _note(self, fact: Any) -> None:
        """Note the present process of each rank."""
        started = fact.pids if isinstance(fact, facts.RanksStarted) else {}
        if isinstance(fact, m.WorkerAttached):
            self.attached.add((fact.rank, fact.pid))
            started = {} if (fact.rank, fact.pid) in self._old else {fact.rank: fact.pid}
        for rank, pid in started.items():
            if self._present.get(rank, pid) != pid:
                self._old.add((rank, self._present[rank]))
            self._present[rank] = pid

    def _check_fact(self, fact: Any, epoch: int, effects: Any) -> None:
        law = self._run.law
        acts = [e for e in effects if isinstance(e, (*STOPS, fx.SendToClient, fx.KillRank, fx.SendToRank, fx.ArmRank))]
        match fact:
            case m.PauseEngine() if fact.epoch == epoch and self._machine._context.host is not None:
                law(any(isinstance(e, fx.InterruptBusyLoop) for e in effects), "a pause interrupts the busy loop")
            case m.PauseEngine() if fact.epoch != epoch:
                law(not any(isinstance(e, STOPS) for e in effects), "a pause of another epoch is void")
            case facts.RankLost() | m.WorkerReport() if (fact.rank, fact.pid) in self._old:
                law(not acts, "a late report of an old rank changes nothing")
            case facts.RankLost() if (fact.rank, fact.pid) in self._condemned:
                told = [e.message for e in effects if isinstance(e, fx.SendToClient)]
                is_told = any(isinstance(t, m.EngineFaulted) and t.fault.fault_class is LOST for t in told)
                law(not is_told, "the death of a rank that was killed is no new loss")
            case facts.EvidenceKept(stall=stall) if (stall.rank, stall.pid) in self._old:
                law(not acts, "late evidence kills no new process")
            case facts.RecoveryFailed() if self._machine._ranks.has_peers():
                is_broken = any(isinstance(e, fx.BreakOwnCollectives) for e in effects)
                law(is_broken, "peers of a failed recovery are let go")
            case m.RankStuck():
                looks = self._engine.workers[fact.rank].looks
                is_old = self._engine.workers[fact.rank].process.pid != fact.pid
                is_stuck = len(looks) > 1 and looks[-1] is not None and looks[-1] == looks[-2]
                law(is_old or is_stuck, "a rank is accused after two looks")

    def _check_effects(self, epoch: int, effects: Any) -> None:
        run, machine = self._run, self._machine
        pids = machine.registry.pids()
        self._check_kills(effects, epoch)
        self._condemned.update((e.rank, pids[e.rank]) for e in effects if isinstance(e, fx.KillRank))
        told = {rank for rank, pid in pids.items() if (rank, pid) in self._condemned}
        kept = machine._ranks._armed._kept
        run.law(len(kept) <= engine_core_state.MAX_ARMED, "an engine core keeps a bounded number of armings")
        for effect in effects:
            match effect:
                case fx.Release(task=fx.RunRecovery(command=command)):
                    run.law(command.epoch > epoch, "a recovery has a newer epoch than the engine core")
                    is_anew = any(isinstance(e, fx.RelearnDeadlines) for e in effects)
                    run.law(is_anew, "deadlines of steps are learned anew after a recovery")
                case fx.Release(task=fx.AnnouncePause(broken=True)):
                    workers = self._engine.core.workers
                    running = [w.rank for w in workers if not (w.fenced or w.gone or w.rank in told)]
                    run.law(not running, "a pause is announced when every rank has stopped")
                case fx.Release(task=fx.EndBusyLoop(reason=reason)):
                    is_heard = not run.schedule.weather.loss and not run.schedule.has(Kind.MUTE)
                    run.law("silent" not in reason or not is_heard, "a paused engine core hears that the owner lives")

    def _check_kills(self, effects: Any, epoch: int) -> None:
        """Check that a rank is accused of silence only after the rank was told to stop."""
        run = self._run
        faults = [e.message.fault for e in effects if isinstance(e, fx.SendToClient) and hasattr(e.message, "fault")]
        unsteady = (Kind.MUTE, Kind.FREEZE, Kind.BLOCK_EFFECT)
        is_certain = not (run.schedule.weather.loss or any(run.schedule.has(kind) for kind in unsteady))
        for fault in faults:
            if is_certain and fault is not None and "did not acknowledge" in fault.message:
                worker = self._engine.workers[int(fault.rank or 0)]
                is_told = epoch in worker.told_in or worker.process.is_gone  # the news of the death may come late
                run.law(is_told, "a rank is accused of silence after it was told to stop")

    def _check_deaths(self, fact: Any, effects: Any, now: float) -> None:
        """Check that a kill that had no effect is repeated, until a recovery begins."""
        run, pids = self._run, self._machine.registry.pids()
        if isinstance(fact, facts.RankLost):
            self._dying.pop((fact.rank, fact.pid), None)
        is_steady = not (run.schedule.has(Kind.FREEZE) or run.schedule.has(Kind.BLOCK_EFFECT))
        for (rank, pid), killed_at in self._dying.items():
            is_due = is_steady and pids.get(rank) == pid and run.tally.failed_effects["kill_rank"] > 0
            run.law(not is_due or now - killed_at < KILLED_AGAIN_S, "a kill that failed is repeated")
        for effect in effects:
            if isinstance(effect, fx.Release) and isinstance(effect.task, fx.RunRecovery):
                self._dying.clear()
            if isinstance(effect, fx.KillRank):
                key = effect.rank, pids[effect.rank]
                self._kills[key] += 1
                self._dying[key] = now if self._kills[key] < engine_core_state.MAX_KILLS else math.inf
