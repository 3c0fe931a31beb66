"""A simulated engine core: the shipped machine of its sentinel, over a pretend engine, on virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.world import World
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import EngineCoreMachine
from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectedFault, InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall
from holdfast.hosts.fake import EngineOptions, FakeEngineCore, Interrupted, WorkerFailed
from holdfast.sentinel.quarantine import Quarantine

STALL_S = (0.8, 4.0)  # until a rank that makes no progress is seen to stall
LOOK_S = 0.1
CERTAIN = 0.3  # the odds that a look shows which rank hangs: the process is stopped
REPORT_S = 0.05  # a worker's message to its engine core arrives within
TASK_S = 0.05  # the busy loop's thread takes up a task within
KILLED = "killed by SIGKILL"


class SimulatedEngine:
    """Shell of a machine: performs effects, and models the busy loop, the workers and the watch of workers."""

    step_s = (0.005, 0.02)  # from the begin of a step to that of the next

    def __init__(self, world: World, engine_id: int, options: EngineOptions, pid: int = 1) -> None:
        self._world = world
        self._id = engine_id
        self.options = options
        self.pid = pid
        self._host = FakeEngineCore(engine_id, options, self)
        self._machine = EngineCoreMachine(engine_id, world.conditions.config, lambda: world.wall_s + world.time.now)
        self._quarantine = Quarantine(engine_id, self._send, lambda: self._machine.epoch)
        self._pids = {worker.rank: pid + 1 + worker.rank for worker in self._host.workers}
        self._tasks: deque[fx.Task] = deque()
        self._error: Exception | None = None  # from the end of a step until the busy loop runs again
        self._noticed: set[int] = set()  # ranks whose death the watch has noticed
        self._wakes_at = float("inf")
        self._gone = False

    @property
    def engine_id(self) -> int:
        return self._id

    @property
    def ranks(self) -> int:
        return self.options.ranks

    def draw_requests(self) -> None:
        """Draw the requests of clients that come to the engine core, and the clients that leave early."""
        dice, front_end = self._world.dice, self._world.front_end
        common, names = [dice.randrange(997) for _ in range(17)], []  # long enough to share blocks
        for index in range(self._world.conditions.requests_per_engine):
            own = [dice.randrange(997) for _ in range(dice.randint(1, 4))]
            prompt, length = common[: dice.choice([0, 8, 17])] + own, dice.randint(1, 14)
            request = Request(f"{self._id}.{index}", tuple(prompt), length, self.ranks)
            front_end.expect(request)
            names.append(request.name)
            self._after((0.0, 0.1, 0.2)[dice.randrange(3)], partial(front_end.accept, request, self._id))
        for name in dice.sample(sorted(names), self._world.conditions.aborts):
            self._after(dice.uniform(0.0, 0.5), partial(front_end.abort, name))

    # ---- the process

    def start(self) -> None:
        """Attach every worker, report to the client, and run."""
        reports = [self._attached(rank) for rank in self._pids]
        for report in reports:
            self._feed(report)
        self._feed(facts.HostAttached(in_lockstep=False))
        attached = m.EngineAttached(
            engine_id=self._id,
            pid=self.pid,
            hooks=("step",),
            workers=tuple(reports),
            pipeline_stages=self._host.pipeline_stages,
        )
        self._world.carry(attached, self._world.client.deliver)
        conditions, dice = self._world.conditions, self._world.dice
        if dice.random() < conditions.worker_lost:
            self._after(dice.uniform(0.0, 2.0), self._lose_worker)
        if dice.random() < conditions.lost:
            self._after(dice.uniform(0.0, 2.0), self.die)
        self._turn()

    def _attached(self, rank: int) -> m.WorkerAttached:
        return m.WorkerAttached(rank=rank, pid=self._pids[rank], hooks=("step",))

    def stop(self) -> None:
        """End the process on purpose."""
        self._gone = True

    @property
    def is_gone(self) -> bool:
        return self._gone

    def die(self) -> None:
        """End the process; the client hears of the loss a little later."""
        if not self._gone:
            self._gone = True
            self._soon(0.1, lambda: self._world.client.lost(self._id, self.pid))

    @property
    def runs(self) -> bool:
        return not self._gone and self._error is None

    def why_ended(self, request_id: str) -> str:
        """Return the error that the client of an ended request got."""
        return self._host.requests.ended[request_id]

    def arm(self, spec: InjectionSpec) -> None:
        """Arm a fault in a worker or in the engine core, by phase."""
        (self._host.workers[spec.rank] if spec.phase.in_worker else self._host).arm(spec)

    def add(self, request: Request, history: list[int]) -> None:
        self._host.add(request.name, request.prompt, request.max_tokens, history)

    def abort(self, name: str) -> None:
        self._host.abort(name)

    # ---- the busy loop

    def _turn(self) -> None:
        if self._gone:
            return
        try:
            self._host.step()
        except (InjectedFault, WorkerFailed, Interrupted) as error:
            self._step_failed(error)
            return
        finally:
            self._stream_outputs()
        self._after(self._world.dice.uniform(*self.step_s), self._turn)

    def _stream_outputs(self) -> None:
        self._world.front_end.end(self, self._host.requests.ended)
        self._world.front_end.deliver(self, self._host.take_outputs())

    def _step_failed(self, error: Exception) -> None:
        self._error = error
        if self._world.dice.random() < self._world.conditions.stuck:
            self._get_stuck(error)
        elif any(worker.hangs for worker in self._host.workers):
            self._after(self._world.dice.uniform(*STALL_S), partial(self._look_for_stalls, first=True))
        else:
            self._notice_dead_ranks()
            self._soon(TASK_S, self._step_ended)

    def _step_ended(self) -> None:
        assert self._error is not None
        error, host = self._error, self._host
        self._feed(facts.StepRaised(error, host.is_interrupt(error), host.is_workers_reply(error)))

    def _get_stuck(self, error: Exception) -> None:
        """Never come back from a fault that was reported; the owner's watch of engine cores ends the process."""
        self._world.note(f"engine {self._id} is stuck")
        fault = fault_of(error, default_classifier(), engine_id=self._id)
        self._feed(m.RankFaulted(rank=0, pid=self._pids[0], epoch=self._machine.epoch, fault=fault))
        config = self._world.conditions.config
        self._after(config.engine_recovery_timeout_s + config.containment_timeout_s, self.die)

    def _work(self) -> None:
        """Perform the next task of the busy loop's thread."""
        if self._gone:
            return
        match self._tasks.popleft():
            case fx.CheckWorkers():
                self._feed(facts.WorkersChecked(self._host.lost_ranks()))
            case fx.StudyFault() as study:
                self._quarantine.learn(study.fault, self._host.requests)
                self._feed(facts.FaultStudied())
            case fx.AnnouncePause() as pause:
                self._announce_pause(pause)
            case fx.RunRecovery() as recovery:
                self._soon(0.2, lambda: self._recover(recovery.command))
            case fx.EndBusyLoop():
                self.die()

    def _announce_pause(self, pause: fx.AnnouncePause) -> None:
        self._send(
            m.EnginePaused(
                engine_id=self._id,
                epoch=pause.epoch,
                fault=pause.fault,
                unfinished_requests=self._host.unfinished_requests(),
                broken=pause.broken,
                search_progressed=self._quarantine.search_progressed,
                progressed=self._host.step_ended_well or not self._host.unfinished_requests(),
            )
        )

    def _recover(self, command: m.RecoverEngine) -> None:
        if self._gone:
            return
        assert self._error is not None
        try:
            report = self._host.recover(self._error, command.epoch, command.rendezvous, command.replace)
            self._quarantine.carry_out(report.replaced_ranks)
        except (InjectedFault, WorkerFailed) as again:
            self._feed(facts.RecoveryFailed(again, self._host.lost_ranks()))
            return
        for rank in report.replaced_ranks:
            self._pids[rank] += self.ranks
            self._noticed.discard(rank)
            self._feed(self._attached(rank))
        self._error = None
        self._feed(facts.RecoveryFinished(report))
        self._turn()

    # ---- the workers, and who watches them

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        """Take a rank's own account, which travels beside the reply to the step."""
        assert fault.rank is not None
        report = m.RankFaulted(rank=fault.rank, pid=self._pids[fault.rank], epoch=epoch, fault=fault, finishes=finishes)
        self._soon(REPORT_S, partial(self._feed, report))

    def _lose_worker(self) -> None:
        """End the process of a worker, in any state of the busy loop."""
        if self._gone:
            return
        self._end_rank(self._world.dice.randrange(self.ranks))

    def _end_rank(self, rank: int) -> None:
        """End the process of a rank; a step that waits for a reply of a hanging rank ends as well."""
        worker = self._host.workers[rank]
        was_awaited, worker.hangs = worker.hangs, False
        self._host.kill_rank(rank)
        self._notice_dead_ranks()
        if was_awaited:
            self._soon(TASK_S, self._step_ended)

    def _notice_dead_ranks(self) -> None:
        for worker in self._host.workers:
            if worker.gone and not worker.hangs and worker.rank not in self._noticed:
                self._noticed.add(worker.rank)
                self._world.note(f"rank {worker.rank} of engine {self._id} is gone")
                self._feed(facts.RankLost(worker.rank, self._pids[worker.rank], KILLED, -9))

    def _tell_rank(self, rank: int, message: m.ToWorker) -> None:
        worker = self._host.workers[rank]
        if worker.gone and not worker.hangs:
            return
        match message:
            case m.BreakCollectives():
                silent = self._world.conditions.silent
                is_silent = silent > 0.0 and self._world.dice.random() < silent
                if worker.break_collectives(message.epoch) is not None and not is_silent:
                    broken = m.CollectivesBroken(rank=rank, pid=self._pids[rank], epoch=message.epoch)
                    self._soon(REPORT_S, partial(self._feed, broken))
            case m.ArmWorkerFault():
                worker.arm(message.spec)

    def _look_for_stalls(self, *, first: bool = False) -> None:
        """Observe ranks of which one hangs: until collectives break, the rest wait for that rank."""
        if self._gone or self._error is None:
            return
        hanging = {worker.rank for worker in self._host.workers if worker.hangs}
        if not hanging:
            return
        certain = first and self._world.dice.random() < CERTAIN
        stalled = sorted(hanging) if certain or not first else list(self._pids)
        stalls = tuple(Stall(rank, self._pids[rank], certain, "no progress") for rank in stalled)
        self._feed(facts.StallsSeen(stalls, is_rebuildable=True))
        self._after(LOOK_S, self._look_for_stalls)

    # ---- the machine

    def deliver(self, data: bytes) -> None:
        """Take a message of the client."""
        self._feed(m.decode_to_engine(data))

    def _feed(self, fact: facts.Fact) -> None:
        if self._gone:
            return
        for effect in self._machine.handle(fact, self._world.time.now):
            self._perform(effect)
        self._schedule_wake()

    def _schedule_wake(self) -> None:
        due = self._machine.wakes_at()
        if due < self._wakes_at:
            self._wakes_at = due
            self._after(max(0.0, due - self._world.time.now), partial(self._wake, due))

    def _wake(self, due: float) -> None:
        if due == self._wakes_at:
            self._wakes_at = float("inf")
            self._feed(facts.TimePassed())

    def _perform(self, effect: fx.Effect) -> None:
        match effect:
            case fx.Release():
                self._tasks.append(effect.task)
                self._soon(TASK_S, self._work)
            case fx.SendToClient():
                self._send(effect.message)
            case fx.SendToRank():
                self._soon(REPORT_S, partial(self._tell_rank, effect.rank, effect.message))
            case fx.BreakOwnCollectives():
                self._host.break_collectives()
            case fx.InterruptBusyLoop():
                self._host.interrupt()
            case fx.KillRank():
                self._soon(REPORT_S, partial(self._end_rank, effect.rank))
            case fx.KeepEvidence():
                self._soon(REPORT_S, partial(self._feed, facts.EvidenceKept(effect.stall)))
            case fx.RelearnDeadlines() | fx.Log():
                self._world.note(effect)
            case _:
                self._world.law(False, f"{effect} is not asked for in a simulation")

    def _send(self, message: m.FromEngine) -> None:
        self._world.carry(msgspec.structs.replace(message, pid=self.pid), self._world.client.deliver)

    def _soon(self, within_s: float, call: Callable[[], None]) -> None:
        self._after(self._world.dice.uniform(0.0, within_s), call)

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        self._world.time.after(delay_s, call)
