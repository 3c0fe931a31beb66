"""The processes of a simulated engine core: the shipped sentinels of engine core and workers over a pretend engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.sentinels.scheduler import Process, ProcessEnded
from holdfast.core.config import HoldfastConfig
from holdfast.core.engine_core.machine import BusyLoop
from holdfast.core.faults.faults import Fault
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import FaultReporter
from holdfast.core.stalls.stalls import Stall
from holdfast.hosts.fake import EngineOptions, FakeEngineCore
from holdfast.hosts.fake.communicators import FakeCommunicators
from holdfast.hosts.fake.worker import FakeWorker
from holdfast.sentinel import engine as engine_module
from holdfast.sentinel import worker as worker_module
from holdfast.sentinel.engine import EngineDefeated

Run = Any  # of the module `run`, which imports this one

CLIENT_INDEX = 99  # of requests: no simulated API server
WORKER_STARTS_IN_S = (0.2, 1.0)
STALL_S = (0.8, 3.0)
SLOW_TO_LEAVE = 0.1  # the odds that a rank stays for a while in a collective that was broken
LEAVES_AFTER_S = (0.5, 1.6)
KILLED = "killed by SIGKILL"


class WorkerProcess:
    """The process of a rank: the shipped sentinel over a pretend worker. Implements `WorkerHost`."""

    def __init__(self, engine: EngineProcess, worker: FakeWorker) -> None:
        self._engine, self._worker, self._run, self.rank = engine, worker, engine.run, worker.rank
        self.process = self._run.new_process(f"worker-{engine.engine_id}-{worker.rank}")
        self.looks: list[str | None] = []
        self.told_in: set[int] = set()  # epochs
        self._leaves_at = 0.0
        worker.reporter = self
        with self._run.as_process(self.process):
            station: Any = self._run.network.station()
            self.sentinel = worker_module.WorkerSentinel(self, worker.rank, station, engine.address)
            self.sentinel.start(("step",))

    def arm(self, spec: InjectionSpec) -> None:
        self._run.effect("worker_arm")
        self._worker.arm(spec)

    def break_collectives(self, epoch: int) -> int | None:
        self.told_in.add(epoch)
        self._run.effect("worker_break")
        connections, run = self._worker.break_collectives(epoch), self._run
        if connections is not None and run.dice.random() < SLOW_TO_LEAVE:
            self._leaves_at = run.scheduler.now + run.dice.uniform(*LEAVES_AFTER_S)
        return connections

    def collective_under_way(self, epoch: int) -> str | None:
        """Return the collective that the main thread is slow to leave; a hanging rank never leaves."""
        is_in = self._worker.hangs or self._run.scheduler.now < self._leaves_at
        self.looks.append("all_reduce" if is_in and self._worker.epoch <= epoch else None)
        return self.looks[-1]

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        """Report a fault of the main thread; a process that has ended reports nothing."""
        if not self.process.is_gone:
            self.sentinel.report(fault, epoch, finishes=finishes)


class HurtEngineCore(FakeEngineCore):
    """A pretend engine core with worker processes, whose effects may fail or block."""

    def __init__(
        self,
        engine: EngineProcess,
        options: EngineOptions,
        reporter: FaultReporter,
        data_parallel: FakeCommunicators | None,
    ) -> None:
        super().__init__(engine.engine_id, options, reporter, data_parallel)
        self._engine = engine

    def break_collectives(self) -> int:
        self._engine.run.effect("break_collectives")
        return super().break_collectives()

    def interrupt(self) -> None:
        self._engine.run.effect("interrupt")
        super().interrupt()

    def arm(self, spec: InjectionSpec) -> None:
        self._engine.run.effect("arm")
        super().arm(spec)

    def configure(self, config: HoldfastConfig) -> None:
        self._engine.run.effect("configure")

    def drop_requests_of(self, client_index: int) -> None:
        self._engine.run.effect("drop_requests_of")
        super().drop_requests_of(client_index)

    def introduce_to_coordinator(self) -> None:
        self._engine.run.effect("introduce_to_coordinator")

    def kill_rank(self, rank: int) -> None:
        self._engine.run.effect("kill_rank")
        self._engine.end_rank(rank)

    def add_request(self, request: Request, history: list[int]) -> None:
        self.add(request.name, request.prompt, request.max_tokens, history, CLIENT_INDEX)

    def _replace(self, ranks: Sequence[int]) -> list[int]:
        replaced = [w.rank for w in self.workers if w.gone or w.rank in ranks]
        for rank in replaced:
            self._engine.end_rank(rank, is_told=False)
        super()._replace(ranks)
        if replaced:
            self._engine.start_ranks(replaced)
        return replaced


class StallWatch:
    """Twin of `ProgressWatch`: ranks that hang make no progress, and their peers wait for them."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._observed_at = -1.0
        self._since: dict[int, float] = {}
        self._bound_s = 0.0
        self.detector = SimpleNamespace(relearn=lambda: None)

    def is_due(self, now: float) -> bool:
        return now - self._observed_at >= 0.1

    def observe(self, now: float, pids: Mapping[int, int]) -> list[Stall]:
        self._observed_at, core, dice = now, self._engine.core, self._engine.run.dice
        hanging = {w.rank: pids[w.rank] for w in core.workers if w.hangs and w.rank in pids}
        for pid in hanging.values():
            if pid not in self._since:
                self._since[pid], self._bound_s = now, dice.uniform(*STALL_S)
        late = sorted(rank for rank, pid in hanging.items() if now - self._since[pid] >= self._bound_s)
        is_certain = bool(late) and dice.random() < 0.5
        searched = self._engine.sentinel._machine.is_searching
        seen: Collection[int] = late if is_certain or searched or not late else pids
        return [Stall(rank, pids[rank], is_certain, "no progress") for rank in seen]


class EngineProcess:
    """The process of an engine core, with the processes of its ranks."""

    def __init__(self, run: Run, engine_id: int, joins_epoch: int | None = None, is_first: bool = False) -> None:
        self.run, self._id = run, engine_id
        self.options: EngineOptions = run.schedule.engines[engine_id]
        self.process: Process = run.new_process(f"engine-{engine_id}")
        self.address = f"engine-{engine_id}-{self.process.pid}"
        self._joins_epoch, self.is_first = joins_epoch, is_first
        self.is_announced = False
        self.stepped_in = -1  # the last epoch in which the busy loop ran
        data_parallel = run.data_parallel_of(engine_id)
        self.core = HurtEngineCore(self, self.options, self, data_parallel)
        self._data_parallel = data_parallel
        self.workers: dict[int, WorkerProcess] = {}
        self.sentinel: Any = None
        self.laws: Any = None
        self.process.on_end.append(self._ended)

    @property
    def engine_id(self) -> int:
        return self._id

    @property
    def ranks(self) -> int:
        return self.options.ranks

    @property
    def is_gone(self) -> bool:
        return self.process.is_gone

    def start(self) -> None:
        self.run.scheduler.start_fiber(self.process, self._main)

    # ---- main thread

    def _main(self) -> None:
        run = self.run
        station: Any = run.network.station()
        self.sentinel = engine_module.EngineCoreSentinel(
            self._id, run.schedule.config, station, "client", self.address, joins_epoch=self._joins_epoch
        )
        self.sentinel._stalls = SimpleNamespace(keep_within=self._keep_evidence, devices=None)
        self.laws = run.machine_laws(self)
        self.sentinel.start()
        for worker in self.core.workers:
            self.workers[worker.rank] = WorkerProcess(self, worker)
        try:
            reports = self.sentinel.await_workers(self.ranks, 6.0)
        except Exception:
            run.engine_exits(self, "did not start")
            raise ProcessEnded from None
        self.sentinel.announce(self.core, ("step",), reports)
        self.sentinel._watch = StallWatch(self)
        self.is_announced = True
        try:
            self.sentinel.run(self._busy_loop, lambda: True)
        except EngineDefeated as defeat:
            run.note(f"engine {self._id} ends: {defeat}")
            run.engine_exits(self, "exit code 1")
            raise ProcessEnded from None
        run.law(False, "a busy loop runs until the engine core ends")

    def _busy_loop(self) -> None:
        run = self.run
        while True:
            machine = self.sentinel._machine
            run.law(machine.busy_loop is BusyLoop.RUNNING, "an engine core takes no step while it is paused")
            self.stepped_in = machine.epoch
            try:
                busy = self.core.step()
            except Exception:
                self._take_losses()
                run.scheduler.wait_for(lambda: not any(w.hangs for w in self.core.workers), None)
                raise
            finally:
                if not self.is_gone:
                    run.front_end.end(self, self.core.requests.ended)
                    run.front_end.deliver(self, self.core.take_outputs())
            run.scheduler.sleep(run.dice.uniform(0.02, 0.08) if busy else 0.25)

    def _keep_evidence(self, stall: Stall, pids: Mapping[int, int], then: Callable[[], None]) -> None:
        """Keep evidence, or fail; what follows comes in any case, and may come late."""
        with contextlib.suppress(OSError):
            self.run.effect("evidence")
            self.run.evidence.keep(self._id, stall, pids)
        self.run.scheduler.after(self.run.draw_lateness(0.05), then, self.process)

    # ---- ranks

    def _take_losses(self) -> None:
        """End the processes of the ranks that have killed themselves in a step."""
        for worker in self.core.workers:
            if worker.gone and not worker.hangs:
                self.end_rank(worker.rank)

    def end_rank(self, rank: int, *, is_told: bool = True) -> None:
        """End the process of a rank. The watch of workers tells the sentinel a little later."""
        worker, known = self.core.workers[rank], self.workers.get(rank)
        worker.hangs = False
        worker.die()
        if known is None or known.process.is_gone:
            return
        self.run.scheduler.end(known.process)
        if is_told:
            self.run.note(f"rank {rank} of engine {self._id} is gone")
            self.run.scheduler.after(self.run.draw_lateness(0.1), lambda: self._tell_loss(known), self.process)

    def _tell_loss(self, lost: WorkerProcess) -> None:
        """Tell the sentinel of a loss, late enough at times for a replacement to have started."""
        self.sentinel.rank_lost(lost.rank, lost.process.pid, KILLED, -9)

    def start_ranks(self, ranks: Sequence[int]) -> None:
        """Start new processes for ranks, and wait for their reports."""
        run = self.run
        run.scheduler.sleep(run.dice.uniform(*WORKER_STARTS_IN_S))
        for rank in ranks:
            self.workers[rank] = WorkerProcess(self, self.core.workers[rank])
        pids = {rank: self.workers[rank].process.pid for rank in ranks}
        self.sentinel.await_processes(pids, run.schedule.config.worker_start_timeout_s)
        run.law(all(one in self.laws.attached for one in pids.items()), "a new process is ready when it has reported")

    def report(self, fault: Fault, epoch: int, *, finishes: bool = False) -> None:
        """Drop the report of a rank without a process."""

    def _ended(self) -> None:
        for worker in self.workers.values():
            self.run.scheduler.end(worker.process)
        if self._data_parallel is not None:
            self._data_parallel.break_all()

    # ---- front end

    def add(self, request: Request, history: list[int]) -> None:
        self.core.add_request(request, history)

    def abort(self, name: str) -> None:
        self.core.abort(name)

    def stop(self) -> None:
        self.run.scheduler.end(self.process)

    def deliver(self, data: bytes) -> None:
        """Take nothing: messages arrive at the sentinel's station."""
