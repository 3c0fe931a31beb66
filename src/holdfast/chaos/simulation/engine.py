"""What the EngineCoreSentinel and its busy loop are in earnest, over a pretend engine core."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from holdfast.chaos.simulation.front_end import Request
from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.core.faults.faults import Fault, FaultClass, deeper, hung
from holdfast.core.faults.injection import InjectedFault, InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.hosts.fake import EngineOptions, FakeEngineCore, Interrupted, WorkerFailed
from holdfast.sentinel.quarantine import Quarantine

if TYPE_CHECKING:
    from holdfast.chaos.simulation.run import Simulation

STALL_S = (0.8, 4.0)  # until a rank that hangs is taken for it


class SimulatedEngine:
    """What the EngineCoreSentinel and its busy loop are in earnest, over a pretend engine core."""

    def __init__(self, simulation: Simulation, engine_id: int, options: EngineOptions, pid: int = 1) -> None:
        self._sim = simulation
        self._id = engine_id
        self.options = options
        self.pid = pid
        self._host = FakeEngineCore(engine_id, options, self)
        self._epoch = 0
        self._rank_fault: Fault | None = None
        self._error: Exception | None = None  # while it stands held
        self._deadline_s = 0.0
        self._orders: deque[m.RecoverEngine] = deque()
        self._gone = False
        self._recovering = False
        self._quarantine = Quarantine(engine_id, self._send, lambda: self._epoch)

    @property
    def engine_id(self) -> int:
        return self._id

    @property
    def ranks(self) -> int:
        return self.options.ranks

    def draw_requests(self) -> None:
        """Clients that will come to it, some of whom go away again."""
        dice, front_end = self._sim.dice, self._sim.front_end
        common, names = [dice.randrange(997) for _ in range(17)], []  # long enough to share blocks
        for index in range(self._sim.scenario.requests_per_engine):
            own = [dice.randrange(997) for _ in range(dice.randint(1, 4))]
            prompt, length = common[: dice.choice([0, 8, 17])] + own, dice.randint(1, 14)
            request = Request(f"{self._id}.{index}", tuple(prompt), length, self.ranks)
            front_end.expect(request)
            names.append(request.name)
            self._sim.time.after(dice.choice([0.0, 0.1, 0.2]), partial(front_end.accept, request, self._id))
        for name in dice.sample(sorted(names), self._sim.scenario.aborts):
            self._sim.time.after(dice.uniform(0.0, 0.5), partial(front_end.abort, name))

    # ---- its life

    def start(self) -> None:
        workers = tuple(
            m.WorkerAttached(rank=w.rank, pid=self.pid + 1 + w.rank, hooks=("step",)) for w in self._host.workers
        )
        self._send(m.EngineAttached(engine_id=self._id, pid=self.pid, hooks=("step",), workers=workers))
        if self._sim.dice.random() < self._sim.scenario.worker_lost:
            self._sim.time.after(self._sim.dice.uniform(0.0, 2.0), self._lose_worker)
        if self._sim.dice.random() < self._sim.scenario.lost:
            self._sim.time.after(self._sim.dice.uniform(0.0, 2.0), self.die)
        self._turn()

    def stop(self) -> None:
        self._gone = True

    @property
    def is_gone(self) -> bool:
        return self._gone

    def die(self) -> None:
        if not self._gone:
            self._gone = True
            self._sim.time.after(self._sim.dice.uniform(0.0, 0.1), lambda: self._sim.client.lost(self._id))

    def _lose_worker(self) -> None:
        """A worker's process ends: its exit is noticed, whatever the busy loop is at."""
        if self._gone:
            return
        if self._recovering:  # the host finds it itself; what it says of that is not part of this
            self._sim.time.after(0.05, self._lose_worker)
            return
        rank = self._sim.dice.randrange(len(self._host.workers))
        self._host.kill_rank(rank)
        self._host.interrupt()
        self._tell_lost(rank)

    def _tell_lost(self, rank: int) -> None:
        self._sim.note(f"rank {rank} of engine {self._id} is gone")
        fault = self._stall_of(rank) if self._host.workers[rank].hangs else self._loss_of(rank)
        self._rank_fault = deeper(self._rank_fault, fault)
        self._send(m.EngineFaulted(engine_id=self._id, epoch=self._epoch, fault=fault))

    def _stall_of(self, rank: int) -> Fault:
        return hung(self._id, rank, "stalled", self._sim.time.now)

    def _loss_of(self, rank: int) -> Fault:
        return Fault(
            fault_class=FaultClass.WORKER_LOST,
            error_type="WorkerLost",
            message=f"the process of rank {rank} is gone: killed by SIGKILL",
            engine_id=self._id,
            rank=rank,
        )

    @property
    def runs(self) -> bool:
        return not self._gone and self._error is None

    def why_ended(self, request_id: str) -> str:
        """What the client of a request was told that was ended with an error."""
        return self._host.requests.ended[request_id]

    def arm(self, spec: InjectionSpec) -> None:
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
            if any(worker.hangs for worker in self._host.workers):
                self._sim.time.after(self._sim.dice.uniform(*STALL_S), partial(self._failed, error))
            else:
                self._failed(error)
            return
        finally:
            self._stream_outputs()
        self._sim.time.after(self._sim.dice.uniform(0.005, 0.02), self._turn)

    def _failed(self, error: Exception) -> None:
        for worker in self._host.workers:
            if worker.gone and self._rank_fault is None:
                self._tell_lost(worker.rank)
        self._hold(error)

    def _stream_outputs(self) -> None:
        self._sim.front_end.end(self, self._host.requests.ended)
        self._sim.front_end.deliver(self, self._host.take_outputs())

    def _hold(self, error: Exception) -> None:
        if self._sim.dice.random() < self._sim.scenario.stuck:
            self._sim.note(f"engine {self._id} is stuck")
            self.report(self._own_fault(error), self._epoch)
            self._error = error
            self._wait_bounded()
            return
        self._sim.time.after(self._sim.dice.uniform(0.0, 0.05), lambda: self._stand_held(error))

    def _stand_held(self, error: Exception) -> None:
        self._error = error
        fault = self._rank_fault or self._own_fault(error)
        self._quarantine.learn(fault, self._host.requests)
        left, search_progressed = self._host.unfinished_requests(), self._quarantine.search_progressed
        held = m.EnginePaused(
            engine_id=self._id,
            epoch=self._epoch,
            fault=fault,
            unfinished_requests=left,
            search_progressed=search_progressed,
        )
        self._send(held)
        self._wait_bounded()
        self._follow_orders()

    def _wait_bounded(self) -> None:
        """A client that is gone, or whose orders are lost, must not keep an engine core for ever."""
        config = self._sim.scenario.config
        bound_s = config.engine_recovery_timeout_s + config.containment_timeout_s
        self._deadline_s = self._sim.time.now + bound_s
        self._sim.time.after(bound_s, self._give_up)

    def _give_up(self) -> None:
        if self._error is not None and self._sim.time.now >= self._deadline_s:
            self.die()

    # ---- what its sentinel does

    def report(self, fault: Fault, epoch: int) -> None:
        """A rank's own account, out of band."""
        if epoch == self._epoch and self._rank_fault is None:
            self._rank_fault = fault
            self._send(m.EngineFaulted(engine_id=self._id, epoch=epoch, fault=fault))

    def deliver(self, data: bytes) -> None:
        match m.decode_to_engine(data):
            case m.RecoverEngine() as order:
                self._orders.append(order)
                self._follow_orders()
            case m.EndEngine():
                self.stop()

    def _follow_orders(self) -> None:
        while self._orders and self._error is not None and not self._gone:
            order = self._orders.popleft()
            if order.epoch > self._epoch:
                self._carry_out(order)

    def _carry_out(self, order: m.RecoverEngine) -> None:
        error, self._epoch, self._rank_fault = self._error, order.epoch, None
        assert error is not None
        self._deadline_s = float("inf")
        self._recovering = True
        drained_s = self._sim.dice.uniform(0.0, 0.2)
        self._sim.time.after(drained_s, lambda: self._recover(order, error))

    def _recover(self, order: m.RecoverEngine, error: Exception) -> None:
        self._recovering = False
        if self._gone:
            return
        try:
            report = self._host.recover(error, order.epoch, order.rendezvous, order.replace)
            self._quarantine.carry_out(report.replaced_ranks)
        except InjectedFault as again:
            self._send(
                m.RecoveryAborted(
                    engine_id=self._id, command_id=order.command_id, epoch=order.epoch, fault=self._own_fault(again)
                )
            )
            self._wait_bounded()
            return
        self._error = None
        self._send(m.EngineRecovered(engine_id=self._id, command_id=order.command_id, epoch=order.epoch, report=report))
        self._turn()

    def _own_fault(self, error: Exception) -> Fault:
        return fault_of(error, default_classifier(), engine_id=self._id)

    def _send(self, message: m.FromEngine) -> None:
        self._sim.carry(message, self._sim.client.deliver)
