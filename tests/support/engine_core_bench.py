"""One machine of an engine core on virtual time, and everything that the machine asked for."""

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import EngineCoreMachine
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall

WALL = 1_000_000.0
FIRST_PID = 100


def a_fault(fault_class=FaultClass.TRANSIENT, message="boom", rank=0):
    return Fault(fault_class=fault_class, error_type="ValueError", message=message, engine_id=0, rank=rank)


class EngineCoreBench:
    """Shell of a machine without threads: answers tasks of the busy loop at once, and keeps the effects."""

    def __init__(self, ranks=1, *, in_lockstep=False, joining_epoch=None, starting=False, **settings):
        self.now = 50.0
        self.lost_ranks = ()
        self.effects = []
        config = HoldfastConfig(**settings)
        self.machine = EngineCoreMachine(0, config, lambda: WALL + self.now, joining_epoch)
        for rank in range(ranks):
            self.attach(rank, FIRST_PID + rank)
        if not starting:
            self.tell(facts.HostAttached(in_lockstep))
        self.effects.clear()

    # ---- facts

    def tell(self, fact):
        """Tell the machine a fact; return the effects of the fact and of the answers to the tasks in it."""
        if isinstance(fact, m.FromWorker) and not fact.pid:
            fact = msgspec.structs.replace(fact, pid=self.machine.registry.pids().get(fact.rank, 0))
        asked = []
        for effect in self.machine.handle(fact, self.now):
            asked.append(effect)
            self.effects.append(effect)
            match effect:
                case fx.Release(fx.CheckWorkers()):
                    asked += self.tell(facts.WorkersChecked(self.lost_ranks))
                case fx.Release(fx.StudyFault()):
                    asked += self.tell(facts.FaultStudied())
        return asked

    def attach(self, rank, pid, unrebuildable=()):
        return self.tell(m.WorkerAttached(rank=rank, pid=pid, hooks=(), unrebuildable=unrebuildable))

    def wait(self, seconds):
        """Let time pass, as often as the machine is due and once at the end."""
        end = self.now + seconds
        while (due := self.machine.wakes_at()) < end:
            self.now = max(self.now, due)
            self.tell(facts.TimePassed())
        self.now = end
        self.tell(facts.TimePassed())

    def step_raises(self, error=None, *, is_interrupt=False, is_workers_reply=False):
        return self.tell(facts.StepRaised(error or ValueError("boom"), is_interrupt, is_workers_reply))

    def rank_faults(self, rank=0, fault=None, epoch=None, *, finishes=False):
        epoch = self.machine.epoch if epoch is None else epoch
        return self.tell(m.RankFaulted(rank=rank, epoch=epoch, fault=fault or a_fault(rank=rank), finishes=finishes))

    def acknowledge(self, *ranks, epoch=None):
        for rank in ranks:
            self.tell(m.CollectivesBroken(rank=rank, epoch=self.machine.epoch if epoch is None else epoch))

    def command_recovery(self, epoch=1, command_id="recover"):
        return self.tell(m.RecoverEngine(command_id=command_id, epoch=epoch))

    def recover(self, epoch=1):
        """Recover from the pause that is announced."""
        self.command_recovery(epoch)
        assert self.tasks[-1].command.epoch == epoch
        self.tell(facts.RecoveryFinished(m.RecoveryReport()))

    def lose(self, rank, how="killed by SIGKILL", exit_code=-9, pid=None):
        pid = self.machine.registry.pids()[rank] if pid is None else pid
        return self.tell(facts.RankLost(rank, pid, how, exit_code))

    def look(self, *stalls, is_rebuildable=True):
        """One look at the ranks, `PERIOD_S` after the last."""
        self.now += 0.1
        return self.tell(facts.StallsSeen(tuple(stalls), is_rebuildable))

    def keep_evidence(self):
        """The evidence that was asked for last is written."""
        kept = [e.stall for e in self.effects if isinstance(e, fx.KeepEvidence)]
        self.tell(facts.EvidenceKept(kept[-1]))

    def stall(self, rank, *, is_certain=False, call=None):
        return Stall(rank, self.machine.registry.pids()[rank], is_certain, "no progress", call)

    # ---- effects

    def all_of(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    @property
    def told_client(self):
        return [effect.message for effect in self.all_of(fx.SendToClient)]

    @property
    def told_ranks(self):
        return [(effect.rank, effect.message) for effect in self.all_of(fx.SendToRank)]

    @property
    def told_to_break(self):
        return [rank for rank, message in self.told_ranks if isinstance(message, m.BreakCollectives)]

    @property
    def killed(self):
        return [effect.rank for effect in self.all_of(fx.KillRank)]

    @property
    def tasks(self):
        return [effect.task for effect in self.all_of(fx.Release)]

    @property
    def announced(self):
        return [task for task in self.tasks if isinstance(task, fx.AnnouncePause)]

    @property
    def faults(self):
        return [message.fault for message in self.told_client if isinstance(message, m.EngineFaulted)]

    @property
    def interrupts(self):
        return len(self.all_of(fx.InterruptBusyLoop))
