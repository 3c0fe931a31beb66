"""Bench for an instance: a test plays the engine cores, and reads the effects."""

import itertools

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Configure, InjectFault, Pause, RestartWorkers, Resume, Retry
from holdfast.core.protocol.effects import Publish, Send

AUTO = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_engine_restarts=0)
NO_RESTARTS = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_worker_restarts=0, max_engine_restarts=0)
EXTERNAL = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=120.0)
SPEC = InjectionSpec(phase=Phase.FORWARD)


def signed(fact, view):
    """Return a fact with the present process of the engine core, unless the fact names a process."""
    known = view.engine(fact.engine_id)
    return fact if fact.pid or known is None else msgspec.structs.replace(fact, pid=known.pid or 1)


class Bench:
    """Instance with the reports of its engine cores, and every effect so far."""

    def __init__(self, config=AUTO, engines=(0,), attached=True, groups=None):
        ids = itertools.count(1)
        groups = groups or [(e,) for e in engines]
        engines = [e for group in groups for e in group]
        self.instance = Instance(
            groups,
            config,
            wall_clock=lambda: 0.0,
            new_command_id=lambda: f"own-{next(ids)}",
            instance_id="this-life",
        )
        self.now = 1000.0
        self.effects = []
        if attached:
            for engine_id in engines:
                self.attached(engine_id)

    def did(self, effects):
        self.effects += effects
        return effects

    def view(self, engine=0):
        return self.instance.view().engine(engine)

    @property
    def events(self):
        return [e.event for e in self.effects if isinstance(e, Publish)]

    def states(self, *engines):
        return [self.view(e).state.value for e in engines]

    @property
    def defeat(self):
        return self.instance.view().defeat

    def all(self, kind):
        return [e for e in self.effects if isinstance(e, kind)]

    def attached(self, engine=0, pid=7, ranks=1, unrebuildable=()):
        workers = (m.WorkerAttached(rank=r, pid=8, hooks=("w",), unrebuildable=unrebuildable) for r in range(ranks))
        return self.observe(m.EngineAttached(engine_id=engine, pid=pid, hooks=("h",), workers=tuple(workers)))

    def observe(self, fact):
        """Tell the instance a fact; a fact without a process is of the present process."""
        return self.did(self.instance.observe(signed(fact, self.instance.view()), self.now))

    def faulted(self, engine=0, epoch=None, fault=None):
        epoch = self.view(engine).epoch if epoch is None else epoch
        return self.observe(m.EngineFaulted(engine_id=engine, epoch=epoch, fault=fault or a_fault(engine)))

    def paused_by_fault(self, engine=0, epoch=None, fault=None, broken=False, progressed=True):
        return self._paused(engine, epoch, fault or a_fault(engine), broken, progressed)

    def paused(self, engine=0, epoch=None, broken=True):
        """Report an engine core as paused without a fault, as ordered."""
        return self._paused(engine, epoch, None, broken)

    def _paused(self, engine, epoch, fault, broken, progressed=True):
        epoch = self.view(engine).epoch if epoch is None else epoch
        held = m.EnginePaused(
            engine_id=engine, epoch=epoch, fault=fault, unfinished_requests=2, broken=broken, progressed=progressed
        )
        return self.observe(held)

    def recovered(self, engine=0, command_id=None, epoch=None, replaced=(), worker_pids=(), report=None):
        view = self.view(engine)
        return self.observe(
            m.EngineRecovered(
                engine_id=engine,
                command_id=command_id or view.last_command_id or "none",
                epoch=view.epoch if epoch is None else epoch,
                report=report or m.RecoveryReport(requests=2, replaced_ranks=replaced),
                worker_pids=worker_pids,
            )
        )

    def aborted(self, engine=0, command_id=None, epoch=None, fault=None):
        view = self.view(engine)
        return self.observe(
            m.RecoveryAborted(
                engine_id=engine,
                command_id=command_id or view.last_command_id or "none",
                epoch=view.epoch if epoch is None else epoch,
                fault=fault or a_fault(engine, message="again"),
            )
        )

    def submit(self, command):
        return self.did(self.instance.submit(command, self.now))

    def retry(self, command_id="cmd", engine=0):
        return self.submit(Retry(command_id=command_id, engine_ids=() if engine is None else (engine,)))

    def pause(self, command_id="pause", *engines, soft=False):
        return self.submit(Pause(command_id=command_id, engine_ids=engines, soft=soft))

    def resume(self, command_id="resume", *engines):
        return self.submit(Resume(command_id=command_id, engine_ids=engines))

    def restart_workers(self, command_id="restart", engine=0, ranks=()):
        return self.submit(RestartWorkers(command_id=command_id, engine_id=engine, ranks=ranks))

    def arm(self, command_id="arm", spec=SPEC):
        return self.submit(InjectFault(command_id=command_id, spec=spec))

    def configure(self, command_id="configure", **settings):
        return self.submit(Configure(command_id=command_id, settings=settings))

    def tick(self, after_s=0.0):
        self.now += after_s
        return self.did(self.instance.tick(self.now))

    def lost(self, engine=0, pid=None):
        return self.did(self.instance.lost(engine, "killed by signal 9", self.now, pid=pid))


def a_fault(engine=0, message="boom", fault_class=FaultClass.TRANSIENT, rank=0, **more):
    about = {"engine_id": engine, "rank": rank, **more}
    return Fault(fault_class=fault_class, error_type="RuntimeError", message=message, **about)


def a_loss(engine=0, rank=0):
    return a_fault(engine, f"the process of rank {rank} is gone", FaultClass.WORKER_LOST, rank)


DEEP = a_fault(message="illegal memory access", fault_class=FaultClass.DEVICE)


def kinds(effects):
    return [e.event.kind.value if isinstance(e, Publish) else type(e).__name__ for e in effects]


def is_keepalive(effect):
    """Return whether an effect only tells a paused engine core that the owner lives."""
    match effect:
        case Send(_, m.PauseEngine(command_id="", soft=True)):
            return True
    return False


def states(effects):
    return [e.event.state for e in effects if isinstance(e, Publish)]
