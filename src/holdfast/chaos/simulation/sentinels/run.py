"""One run of the shipped sentinels on virtual time. Checks the laws at every step; a seed replays a run."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.chaos.simulation.front_end import SimulatedFrontEnd
from holdfast.chaos.simulation.requests import Request
from holdfast.chaos.simulation.sentinels.effects import EffectFailure, PlannedEffects
from holdfast.chaos.simulation.sentinels.engine_core import EngineProcess
from holdfast.chaos.simulation.sentinels.evidence import Evidence
from holdfast.chaos.simulation.sentinels.laws import OwnerLaws
from holdfast.chaos.simulation.sentinels.machine_laws import MachineLaws
from holdfast.chaos.simulation.sentinels.owner import Operator, OwnerHost
from holdfast.chaos.simulation.sentinels.plan import Kind, Planned, Schedule
from holdfast.chaos.simulation.sentinels.result import RunResult, Tally
from holdfast.chaos.simulation.sentinels.scheduler import Process, Scheduler, VirtualCondition
from holdfast.chaos.simulation.sentinels.shell import on_virtual_time, small_bounds
from holdfast.chaos.simulation.sentinels.wire import VirtualNetwork
from holdfast.chaos.simulation.world import LawBroken
from holdfast.core import states
from holdfast.core.instance import group as group_module
from holdfast.core.protocol.events import EngineStatus
from holdfast.core.states import EngineState
from holdfast.hosts.fake.communicators import FakeCommunicators, FakeNetwork
from holdfast.sentinel import client as client_module
from holdfast.sentinel import front_end_link as link_module

CALM = (EngineState.HEALTHY, EngineState.LEFT_OUT)
ATTACH_TIMEOUT_S = 8.0
LATE, LATE_S = 0.2, 4.0  # the odds of late news, and how late
PATIENCE_S = 120.0  # longer than the bound of every command


class Run:
    """A simulated instance: owner, engine cores, workers and links, each a virtual process."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.conditions = schedule, schedule
        self.dice = random.Random(f"run {schedule.seed}")
        self.scheduler = Scheduler()
        self.time = self.scheduler  # for the front end
        self.network = VirtualNetwork(self.scheduler, schedule.weather, random.Random(f"link {schedule.seed}"))
        self.network.note, self.network.is_exempt = self.note, self._is_exempt
        self.evidence = Evidence(self)
        self.tally = Tally(faults=schedule.faults, runs=1)
        self.ended: str | None = None
        self._pids = itertools.count(100)
        self._trace: deque[str] = deque(maxlen=80)
        self._effects = PlannedEffects(self)
        self._bad_starts: Counter[int] = Counter()
        self._networks: dict[tuple[int, ...], FakeNetwork] = {}
        self._broken: LawBroken | None = None
        self.started = False
        self._last_s, self._calm_since = schedule.last_s, 0.0

    # ---- laws

    def law(self, holds: bool, law: str) -> None:
        """Raise `LawBroken`, with the last lines of the trace, unless the law holds."""
        if not holds and self._broken is None:
            trace = "\n  ".join(self._trace)
            self._broken = LawBroken(
                f"{law}: broken by seed {self.schedule.seed} at {self.scheduler.now:.3f} s\n  {trace}"
            )
        if self._broken is not None:
            raise self._broken

    def note(self, what: object) -> None:
        self._trace.append(f"{self.scheduler.now:8.3f} {what}")

    def error_of_a_sentinel(self, name: str, error: Exception) -> None:
        """Take an error that a sentinel's thread has not handled: only planned failures may come so far."""
        if isinstance(error, LawBroken):
            raise error
        self.note(f"{name}: {error!r}")
        self.law(isinstance(error, EffectFailure), f"nothing raises but what is meant to ({error!r})")

    # ---- processes

    def new_process(self, name: str) -> Process:
        return Process(name, next(self._pids))

    @contextlib.contextmanager
    def as_process(self, process: Process) -> Iterator[None]:
        """Do something as a process: its threads and stations belong to the process."""
        before, self.scheduler.running = self.scheduler.running, process
        try:
            yield
        finally:
            self.scheduler.running = before

    def data_parallel_of(self, engine_id: int) -> FakeCommunicators | None:
        """Return new communicators of an engine core in its lockstep group; None without peers."""
        group = next(g for g in self.schedule.groups if engine_id in g)
        if len(group) == 1:
            return None
        if group not in self._networks:
            self._networks[group] = FakeNetwork(len(group))
            self._networks[group].changed = VirtualCondition(self.scheduler)  # type: ignore[assignment]
        return self._networks[group].rank(group.index(engine_id))

    def network_of(self, group: tuple[int, ...]) -> FakeNetwork | None:
        return self._networks.get(group)

    def engine_exits(self, engine: EngineProcess, how: str, after_s: float = 0.05) -> None:
        """End the process of an engine core; the owner's watch reports the loss a little later."""
        if engine.is_gone:
            return
        self.note(f"engine {engine.engine_id} (pid {engine.process.pid}) is gone: {how}")
        self.scheduler.end(engine.process)
        self.scheduler.after(self.draw_lateness(after_s), lambda: self.report_loss(engine, how))

    def draw_lateness(self, usual_s: float) -> float:
        """Draw how late news come: at times so late that a replacement has started."""
        return self.dice.uniform(0.0, LATE_S if self.dice.random() < LATE else usual_s)

    def report_loss(self, engine: EngineProcess, how: str) -> None:
        """Report the loss of a process, late enough at times for a replacement to have started."""
        if self.ended is None:
            self.client.engine_lost(engine.engine_id, how, pid=engine.process.pid)

    def start_engine(self, engine_id: int, joins_epoch: int | None) -> None:
        """Start a replacement; report the loss of a replacement that does not attach in time."""
        if self.ended is not None:
            return
        engine = self.engines[engine_id] = EngineProcess(self, engine_id, joins_epoch)
        engine.start()
        if self._bad_starts[engine_id]:
            self._bad_starts[engine_id] -= 1
            self.scheduler.after(self.dice.uniform(0.0, 0.3), lambda: self.engine_exits(engine, "exit code 1"))
        self.scheduler.after(ATTACH_TIMEOUT_S, lambda: self._give_up_unless_attached(engine))

    def _give_up_unless_attached(self, engine: EngineProcess) -> None:
        known = self.client.view().engine(engine.engine_id)
        is_awaited = known is not None and known.state is EngineState.RESTARTING
        if is_awaited and not engine.is_gone and self.engines[engine.engine_id] is engine:
            self.engine_exits(engine, "did not report in time")

    def end(self, reason: str) -> None:
        """End every process of the instance but the owner."""
        self.law(self.ended is None, "an instance ends once")
        self.law(bool(reason), "an end has a reason")
        self.ended = reason
        self.note(f"ended: {reason}")
        for engine in self.engines:
            self.scheduler.after(0.0, engine.stop)

    def start_link(self, index: int) -> None:
        process = self.new_process(f"link-{index}")
        with self.as_process(process):
            station: Any = self.network.station()
            link = link_module.FrontEndLink(index, self.schedule.config, station, "client")
            link.start(("serve",))
        self.links[index], self.link_processes[index] = link, process

    def _is_exempt(self, data: bytes) -> bool:
        """Return True for reports whose loss would be a failed start, which the owner's launcher ends."""
        return b"worker-attached" in data[:30] or (not self.started and b"engine-attached" in data[:30])

    def machine_laws(self, engine: EngineProcess) -> MachineLaws:
        return MachineLaws(self, engine)

    # ---- planned items

    def effect(self, name: str) -> None:
        """Pass an effect, which may fail or block."""
        self._effects.take(name)

    def _happen(self, item: Planned) -> None:
        if self.ended is not None:
            return
        self.note(f"planned: {item}")
        engine = self.engines[item.target] if item.target < len(self.engines) else None
        match item.kind:
            case Kind.FAULT if engine is not None and item.spec is not None:
                hurt = engine.core.workers[item.spec.rank].faults if item.spec.phase.in_worker else engine.core._faults
                hurt.arm(item.spec)
            case Kind.KILL_WORKER if engine is not None and not engine.is_gone and engine.workers:
                engine.end_rank(self.dice.randrange(engine.ranks))
            case Kind.KILL_ENGINE if engine is not None:
                self.engine_exits(engine, "killed by signal 9")
            case Kind.KILL_LINK if item.target < len(self.links):
                self.operator.lose_process(f"api-server-{item.target}", self.link_processes[item.target])
            case Kind.KILL_COORDINATOR:
                self.operator.lose_process("coordinator", None)
            case Kind.FREEZE:
                self._freeze(item, engine)
            case Kind.FAIL_EFFECT | Kind.BLOCK_EFFECT:
                self._effects.plan(item)
            case Kind.MUTE:
                self.network.muted_until = self.scheduler.now + item.seconds
            case Kind.BAD_START:
                self._bad_starts[item.target] += 1
            case Kind.CLOCK:
                self.scheduler.wall_offset_s += item.seconds
            case Kind.COMMAND:
                self.operator.command(item)

    def _freeze(self, item: Planned, engine: EngineProcess | None) -> None:
        process = self.owner
        if engine is not None and item.what == "engine":
            process = engine.process
        elif engine is not None and item.what == "worker" and engine.workers:
            process = engine.workers[0].process
        self.scheduler.freeze(process, item.seconds)

    # ---- the run

    def run(self) -> RunResult:
        """Run until the instance has been calm for a while after the last planned item, or has ended."""
        with self._virtual():
            self._build()
            calm_since = None
            bound_s = 60.0 + self.schedule.last_s + 3 * self.schedule.recovery_bound_s
            while calm_since is None or self.scheduler.now - calm_since < LATE_S + 1.0:
                self._advance()
                calm_since = (calm_since if calm_since is not None else self.scheduler.now) if self._is_over() else None
                self.law(self.scheduler.now < bound_s, "a run ends")
            self._check_the_end()
            for process in [self.owner, *self.link_processes, *(e.process for e in self.engines)]:
                self.scheduler.end(process)
        finished, events = self.front_end.finished, sum(self.tally.events.values())
        return RunResult(self.schedule.seed, self.ended, finished, events, self.scheduler.now, self.tally)

    @contextlib.contextmanager
    def _virtual(self) -> Iterator[None]:
        next_state = states.next_state

        def counted(state: Any, trigger: Any) -> Any:
            after = next_state(state, trigger)
            self.tally.transitions[f"{state} + {trigger}"] += 1
            return after

        group_module.next_state = counted  # type: ignore[attr-defined]
        try:
            with (
                on_virtual_time(self.scheduler, self.error_of_a_sentinel, self._after_turn),
                small_bounds(self.schedule.has_short_history),
            ):
                yield
        finally:
            self.evidence.close()
            group_module.next_state = next_state  # type: ignore[attr-defined]

    def _build(self) -> None:
        schedule = self.schedule
        self.owner = self.new_process("owner")
        self.laws = OwnerLaws(self)
        with self.as_process(self.owner):
            station: Any = self.network.station()
            self.client = client_module.ClientSentinel(
                schedule.groups, schedule.config, OwnerHost(self), station, "client", sinks={"laws": self.laws.sink}
            )
            self.laws.watch(self.client)
            self.client.expect_links(schedule.links)
            self.client.start()
        self.front_end = SimulatedFrontEnd(self)  # type: ignore[arg-type]
        self.operator = Operator(self)
        self.engines = [EngineProcess(self, i, is_first=True) for i in range(len(schedule.engines))]
        self.links: list[Any] = [None] * schedule.links
        self.link_processes: list[Process] = [self.owner] * schedule.links
        for engine in self.engines:
            engine.start()
        for index in range(schedule.links):
            self.start_link(index)
            self.client.process_attached(f"api-server-{index}", self.link_processes[index].pid)
        self.client.process_attached("coordinator", 7)
        for item in schedule.planned:
            self.scheduler.after(item.at, lambda item=item: self._happen(item))  # type: ignore[misc]
        self._draw_requests()
        self._every(0.5, self.laws.look)
        self._every(0.7, self.operator.look)

    def _every(self, seconds: float, call: Callable[[], None]) -> None:
        def again() -> None:
            call()
            self.scheduler.after(seconds, again)

        self.scheduler.after(seconds, again)

    def _draw_requests(self) -> None:
        dice = random.Random(f"requests {self.schedule.seed}")
        common = [dice.randrange(997) for _ in range(17)]
        for engine in self.engines:
            for index in range(self.schedule.requests_per_engine):
                own = [dice.randrange(997) for _ in range(dice.randint(1, 4))]
                prompt = tuple(common[: dice.choice([0, 8, 17])] + own)
                request = Request(f"{engine.engine_id}.{index}", prompt, dice.randint(4, 14), engine.ranks)
                self.front_end.expect(request)
                at, home = dice.uniform(0.5, 10.0), engine.engine_id
                self.scheduler.after(at, lambda r=request, h=home: self.front_end.accept(r, h))  # type: ignore[misc]

    def _advance(self) -> None:
        try:
            self.scheduler.advance()
        except LawBroken:
            raise
        except Exception as error:
            raise LawBroken(
                f"nothing raises but what is meant to ({error!r}): broken by seed {self.schedule.seed}\n  "
                + "\n  ".join(self._trace)
            ) from error
        if self._broken is not None:
            raise self._broken

    def _after_turn(self, process: Process) -> None:
        if process is self.owner:
            self.started = self.started or all(e.state is not EngineState.STARTING for e in self.client.view().engines)
            self.laws.after_turn()

    def _is_over(self) -> bool:
        if self.ended is not None:
            return not self.operator.open_futures()
        if self.scheduler.now < self._last_s or not self._is_calm():
            self._calm_since = self.scheduler.now
            return False
        is_late = self.scheduler.now - self._calm_since > PATIENCE_S
        self.law(self.front_end.is_done or not is_late, "an accepted request finishes once every engine is healthy")
        self.law(not self.operator.waits or not is_late, f"what is lost comes back: {self.operator.waits}")
        return self.front_end.is_done and not self.operator.waits

    def _is_calm(self) -> bool:
        engines = self.client.view().engines
        return all(e.state in CALM for e in engines) and not any(self._comes_back(e) for e in engines)

    def _comes_back(self, engine: EngineStatus) -> bool:
        """Return whether an engine core that is left out is started again soon."""
        config = self.schedule.config
        is_soon = config.max_engine_restarts > 0 and config.engine_restart_window_s < PATIENCE_S / 2
        return is_soon and engine.state is EngineState.LEFT_OUT

    def _check_the_end(self) -> None:
        finished = self.front_end.is_done or self.ended is not None
        self.law(finished, "an accepted request finishes, or the instance says why not")
        self.law(not self.operator.open_futures(), "every command is settled")
        for engine in self.client.view().engines if self.ended is None else ():
            is_out = engine.state is EngineState.LEFT_OUT
            here = self.engines[engine.engine_id]
            self.law(is_out or not here.is_gone, "a healthy engine core has a process")
            self.law(is_out or engine.pid == here.process.pid, "the status names the process that serves")
        self.laws.at_the_end()


def simulate(schedule: Schedule) -> RunResult:
    """Run a schedule. Raises `LawBroken`."""
    return Run(schedule).run()
