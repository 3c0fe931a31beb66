"""The three real sentinels, on threads of their own, over the in-memory wire and a host that does as it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import pytest

import holdfast.sentinel.worker as worker_sentinel
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadCommand, CommandConflict, HookNotAttached, RecoveryFailed
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec, UncontainedFault
from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Configure, InjectFault, Retry
from holdfast.core.protocol.effects import End, ReplaceEngine
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import RecoveryReport, Rendezvous
from holdfast.core.stalls.standing import Planning
from holdfast.core.states import EngineState
from holdfast.hosts.fake.blocks import BlockPool
from holdfast.hosts.fake.requests import FakeRequests
from holdfast.hosts.fake.scheduler import FakeScheduler
from holdfast.progress import ProgressWriter, publish_progress
from holdfast.sentinel import ClientSentinel, EngineCoreSentinel, EngineDefeated, WorkerSentinel
from holdfast.sentinel.beside import Sink
from holdfast.sentinel.thread import engine_identity, worker_identity
from holdfast.wire import MemoryNetwork

WAIT_S = 10.0
REPLY = RuntimeError("Worker failed with error 'boom'")

NO_REQUESTS = FakeRequests(FakeScheduler(BlockPool(1, 1), step_tokens=1, max_running=1))


@dataclass
class Host:
    """Engine core, worker and front end in one: notes what it is asked, fails where it was told to."""

    failures: list[Exception] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    armed: list[InjectionSpec] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    reason: str = ""
    configured: SimpleQueue[HoldfastConfig] = field(default_factory=SimpleQueue)
    engine_id: int = 0
    in_lockstep: bool = False
    requests: FakeRequests = field(default_factory=lambda: NO_REQUESTS)
    compiles_in_steps: bool = False
    pipeline_stages: int = 1
    step_ended_well: bool = True
    devices: None = None
    rendezvous: list[Rendezvous | None] = field(default_factory=list)

    waits_in: str | None = None
    looks: SimpleQueue[int] = field(default_factory=SimpleQueue)
    killed: list[int] = field(default_factory=list)
    replaced: list[tuple[int, ...]] = field(default_factory=list)
    interrupted: threading.Event = field(default_factory=threading.Event)

    def interrupt(self) -> None:
        self.interrupted.set()

    def unrebuildable(self) -> tuple[str, ...]:
        return ()

    def break_collectives(self, epoch: int | None = None) -> int:
        return 0

    def collective_under_way(self, epoch: int) -> str | None:
        self.looks.put(epoch)
        return self.waits_in

    def is_interrupt(self, error: Exception) -> bool:
        return False

    def unfinished_requests(self) -> int:
        return 3

    def planning(self) -> Planning:
        return Planning(0, 0)

    def ready_requests(self) -> int:
        return 0

    def is_workers_reply(self, error: Exception) -> bool:
        return error is REPLY

    def lost_ranks(self) -> tuple[int, ...]:
        return ()

    def kill_rank(self, rank: int) -> None:
        self.killed.append(rank)

    def recover(
        self, error: Exception, epoch: int, rendezvous: Rendezvous | None, replace: Sequence[int] = ()
    ) -> RecoveryReport:
        self.epochs.append(epoch)
        self.replaced.append(tuple(replace))
        self.rendezvous.append(rendezvous)
        if self.failures:
            raise self.failures.pop(0)
        return RecoveryReport(requests=3, replaced_ranks=tuple(replace))

    def arm(self, spec: InjectionSpec) -> None:
        self.armed.append(spec)

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        return Rendezvous("here", 1, epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None: ...

    def replace_engine(self, order: ReplaceEngine) -> None:
        raise AssertionError("nothing here may be replaced")

    def configure(self, config: HoldfastConfig) -> None:
        self.configured.put(config)

    def unrecoverable_reason(self) -> str:
        return ""

    def end_instance(self, order: End) -> None:
        self.reason = order.reason
        self.ended.set()


class Bench:
    """One instance of one engine with one rank."""

    def __init__(self, sinks: Mapping[str, Sink] | None = None, **settings: object) -> None:
        config = HoldfastConfig(**settings)  # type: ignore[arg-type]
        self.host, self.network = Host(), MemoryNetwork()
        self.client = ClientSentinel([(0,)], config, self.host, self.network.station(), "client", sinks=sinks or {})
        self.engine = EngineCoreSentinel(0, config, self.network.station(), "client", "engine-0")
        self.worker = WorkerSentinel(self.host, 0, self.network.station(), "engine-0")
        self.client.start()
        self.engine.start()

    def attach(self) -> None:
        self.worker.start(("worker hook",))
        workers = self.engine.await_workers(1, WAIT_S)
        self.engine.announce(self.host, ("engine hook",), workers)
        self.client.await_attached(WAIT_S)

    def break_collectives(self) -> None:
        """Have the client pause the engine core, whose peers may wait for its rank."""
        self.engine._feed(m.PauseEngine(command_id="", epoch=0))

    def run(self, *errors: Exception, running: Callable[[], bool] = lambda: True) -> None:
        """A busy loop that raises each error once and then ends."""
        left = list(errors)

        def busy_loop() -> None:
            if left:
                raise left.pop(0)

        self.engine.run(busy_loop, running)

    def close(self) -> None:
        for sentinel in (self.worker, self.engine, self.client):
            sentinel.close()

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.client.history()]

    def settled(self, kind: EventKind) -> None:
        """Wait until the client has published an event: what the engine posted is on its way."""
        with self.client._changed:
            assert self.client._changed.wait_for(lambda: kind in self.kinds(), WAIT_S), self.kinds()


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(sinks: Mapping[str, Sink] | None = None, **settings: object) -> Bench:
        made.append(Bench(sinks, **{"stall_detection": True, **settings}))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    attached = make_bench()
    attached.attach()
    return attached


def ranks_fault(message: str = "boom") -> Fault:
    return Fault(
        fault_class=FaultClass.TRANSIENT, error_type="ValueError", message=message, engine_id=0, rank=0, phase="forward"
    )


def test_an_instance_is_healthy_once_every_process_has_reported_its_hooks(bench: Bench) -> None:
    [engine] = bench.client.view().engines
    assert engine.state is EngineState.HEALTHY
    assert (engine.hooks, engine.worker_hooks) == (("engine hook",), ("worker hook",))


def test_a_worker_that_never_reports_stops_the_start_and_is_named(make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(HookNotAttached, match=r"rank\(s\) \[0\]"):
        make_bench().engine.await_workers(1, 0.01)


def test_an_engine_that_never_reports_stops_the_start_and_is_named(make_bench: Callable[..., Bench]) -> None:
    with pytest.raises(HookNotAttached, match=r"engine core\(s\) \[0\]"):
        make_bench().client.await_attached(0.01)


def test_one_fault_goes_from_detection_to_resumption(bench: Bench) -> None:
    bench.run(ValueError("boom"))
    bench.settled(EventKind.ENGINE_RECOVERED)
    assert bench.host.epochs == [1]
    assert bench.kinds() == [
        EventKind.ENGINE_ATTACHED,
        EventKind.FAULT_REPORTED,
        EventKind.ENGINE_PAUSED,
        EventKind.DECISION_MADE,
        EventKind.RECOVERY_STARTED,
        EventKind.ENGINE_RECOVERED,
    ]


def test_the_cause_is_the_ranks_own_and_not_the_text_of_its_reply(bench: Bench) -> None:
    bench.worker.report(ranks_fault("division by zero"), epoch=0)
    bench.run(REPLY)
    bench.settled(EventKind.ENGINE_RECOVERED)
    faults = [e.fault for e in bench.client.history() if e.kind is EventKind.FAULT_REPORTED]
    assert [(f.error_type, f.rank, f.message) for f in faults if f] == [("ValueError", 0, "division by zero")]


def test_a_report_of_an_older_epoch_changes_nothing(bench: Bench) -> None:
    bench.run(ValueError("first"))
    bench.settled(EventKind.ENGINE_RECOVERED)
    bench.worker.report(ranks_fault("stale"), epoch=0)
    bench.run(ValueError("second"))
    faults = [e.fault for e in bench.client.history() if e.kind is EventKind.FAULT_REPORTED]
    assert "stale" not in {f.message for f in faults if f}


def test_a_fault_in_a_recovery_is_tried_again_under_the_next_epoch(bench: Bench) -> None:
    bench.host.failures = [RuntimeError("again")]
    bench.run(ValueError("boom"))
    bench.settled(EventKind.ENGINE_RECOVERED)
    assert bench.host.epochs == [1, 2]
    assert EventKind.RECOVERY_FAILED in bench.kinds()


CRASH = UncontainedFault(InjectionSpec(phase=Phase.SCHEDULE_END, kind=FaultKind.CRASH))


def test_what_nothing_is_to_contain_ends_the_engine_core(bench: Bench) -> None:
    with pytest.raises(UncontainedFault):
        bench.run(CRASH)
    assert bench.host.epochs == []


def test_so_it_does_in_a_recovery(bench: Bench) -> None:
    bench.host.failures = [CRASH]
    with pytest.raises(UncontainedFault):
        bench.run(ValueError("boom"))


def test_beyond_the_retries_the_engine_core_ends_with_the_original_error_as_its_cause(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(max_retries=0, max_engine_restarts=0)
    bench.attach()
    error = ValueError(PublicText("boom"))
    with pytest.raises(EngineDefeated, match="0 retries") as ended:
        bench.run(error)
    assert ended.value.__cause__ is error
    assert bench.host.ended.wait(WAIT_S)
    assert "ValueError in engine 0: boom" in bench.host.reason


def test_a_paused_engine_waits_for_the_instruction_and_follows_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(fault_policy="external")
    bench.attach()
    busy = threading.Thread(target=bench.run, args=(ValueError("boom"),), daemon=True)
    busy.start()
    bench.settled(EventKind.DECISION_MADE)
    bench.client.submit(Retry(command_id="from outside")).result(WAIT_S)
    busy.join(WAIT_S)
    assert not busy.is_alive()
    assert bench.client.view().engines[0].last_command_id == "from outside"


def test_an_instruction_that_fails_says_so_and_leaves_the_engine_paused(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(fault_policy="external")
    bench.attach()
    bench.host.failures = [RuntimeError(PublicText("again"))]
    threading.Thread(target=bench.run, args=(ValueError("boom"),), daemon=True).start()
    bench.settled(EventKind.DECISION_MADE)
    with pytest.raises(RecoveryFailed, match="again"):
        bench.client.submit(Retry(command_id="first")).result(WAIT_S)
    bench.client.submit(Retry(command_id="second")).result(WAIT_S)


def test_an_instruction_that_makes_no_sense_is_refused_with_the_state(bench: Bench) -> None:
    with pytest.raises(CommandConflict) as refused:
        bench.client.submit(Retry(command_id="x")).result(WAIT_S)
    assert refused.value.state == "healthy"


def test_an_orderly_shutdown_ends_a_pause(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(fault_policy="external")
    bench.attach()
    with pytest.raises(SystemExit):
        bench.run(ValueError("boom"), running=lambda: False)


@pytest.mark.parametrize("phase", [Phase.SCHEDULE_START, Phase.FORWARD])
def test_a_fault_is_armed_in_the_process_that_passes_its_phase(bench: Bench, phase: Phase) -> None:
    spec = InjectionSpec(phase=phase)
    bench.client.submit(InjectFault(command_id="arm", spec=spec)).result(WAIT_S)
    assert bench.host.armed == [spec]


def test_arming_a_rank_that_does_not_exist_is_the_operators_error(bench: Bench) -> None:
    with pytest.raises(BadCommand, match="no rank 4"):
        bench.client.submit(InjectFault(command_id="arm", spec=InjectionSpec(phase=Phase.FORWARD, rank=4))).result(
            WAIT_S
        )


def test_an_engine_core_and_its_host_take_changed_settings(bench: Bench) -> None:
    bench.client.submit(Configure(command_id="c", settings={"drain_timeout": 2})).result(WAIT_S)
    config = bench.host.configured.get(timeout=WAIT_S)
    assert config.drain_timeout_s == 2.0
    assert bench.client.config.drain_timeout_s == 2.0


def test_garbage_on_every_link_is_dropped(bench: Bench) -> None:
    stranger = bench.network.station()
    for address, identity in (("client", engine_identity(0)), ("engine-0", worker_identity(7))):
        spoke = stranger.connect(address, identity)
        for garbage in (b"", b"\xff" * 100, b"{}", b"\x93\x01\x02\x03"):
            spoke.send(garbage)
    # The stranger spoke in the engine core's name: from now on the client would answer it. So does the engine core.
    bench.engine._post(m.EngineAnswered(engine_id=0, command_id="nobody asked"))
    bench.run(ValueError("boom"))
    bench.settled(EventKind.ENGINE_RECOVERED)


def test_a_rank_whose_process_is_gone_is_reported_interrupts_the_busy_loop_and_is_replaced(bench: Bench) -> None:
    bench.engine.rank_lost(0, os.getpid(), "killed by SIGKILL")
    bench.settled(EventKind.FAULT_REPORTED)
    assert bench.host.interrupted.wait(WAIT_S)
    [fault] = [e.fault for e in bench.client.history() if e.kind is EventKind.FAULT_REPORTED]
    assert fault is not None
    assert (fault.fault_class, fault.rank) == (FaultClass.WORKER_LOST, 0)
    assert fault.message == "the process of rank 0 is gone: killed by SIGKILL"
    bench.run(ValueError("told to pause"))
    assert bench.host.replaced == [(0,)]


@pytest.fixture
def told_to_break(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Real time, made short: how long a broken collective may take to raise."""
    bench = make_bench()
    bench.host.in_lockstep = True
    bench.attach()
    monkeypatch.setattr(worker_sentinel, "LEAVES_WITHIN_S", 0.05)
    monkeypatch.setattr(worker_sentinel, "_LOOK_S", 0.02)
    return bench


def test_a_rank_that_does_not_leave_a_broken_collective_is_killed(told_to_break: Bench) -> None:
    told_to_break.host.waits_in = "all_reduce"
    told_to_break.break_collectives()
    told_to_break.settled(EventKind.FAULT_REPORTED)
    [fault] = [e.fault for e in told_to_break.client.history() if e.fault is not None]
    assert (fault.fault_class, fault.rank) == (FaultClass.UNRESPONSIVE, 0)
    assert fault.message == "rank 0 did not leave all_reduce after collectives were broken; declared hung"
    assert told_to_break.host.killed == [0]


def test_a_rank_that_has_left_its_broken_collective_is_let_alone(told_to_break: Bench) -> None:
    told_to_break.break_collectives()
    assert told_to_break.host.looks.get(timeout=WAIT_S) == 0
    told_to_break.run(ValueError("boom"))
    told_to_break.settled(EventKind.ENGINE_RECOVERED)
    assert told_to_break.host.killed == []


def test_a_rank_that_leaves_its_broken_collective_after_the_first_look_is_let_alone(told_to_break: Bench) -> None:
    looks: SimpleQueue[str | None] = SimpleQueue()
    for waits_in in ("all_reduce", None):
        looks.put(waits_in)
    looked_twice = threading.Event()

    def look(epoch: int) -> str | None:
        waits_in = looks.get(timeout=WAIT_S)
        if looks.empty():
            looked_twice.set()
        return waits_in

    told_to_break.host.collective_under_way = look  # type: ignore[method-assign]
    told_to_break.break_collectives()
    assert looked_twice.wait(WAIT_S)
    told_to_break.run(ValueError("boom"))
    told_to_break.settled(EventKind.ENGINE_RECOVERED)
    assert told_to_break.host.killed == []


def test_a_report_of_an_old_process_kills_nothing(bench: Bench) -> None:
    bench.engine._feed(m.RankStuck(rank=0, pid=1, collective="all_reduce"))
    assert bench.host.killed == []


def test_a_rank_that_makes_no_progress_in_a_step_is_killed_and_gets_a_new_process(
    make_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    """Real time: its step is over its deadline after a second; this process is the one that is watched."""
    progress = ProgressWriter(publish_progress(str(tmp_path)))
    for step in range(20):
        progress.begin(Phase.FORWARD, step, 4, 4)
        progress.end()
    bench = make_bench(runtime_dir=str(tmp_path), incident_dir=str(tmp_path / "incidents"))
    bench.attach()
    progress.begin(Phase.FORWARD, 20, 4, 4)
    bench.settled(EventKind.FAULT_REPORTED)
    assert bench.host.killed == [0]
    assert len(list((tmp_path / "incidents" / "evidence").glob("*/stall.json"))) == 1
    [fault] = [e.fault for e in bench.client.history() if e.fault is not None]
    assert (fault.fault_class, fault.rank, fault.phase, fault.step) == (FaultClass.UNRESPONSIVE, 0, Phase.FORWARD, 20)
    progress.end()
    bench.engine.rank_lost(0, os.getpid(), "killed by SIGKILL")
    assert bench.host.interrupted.wait(WAIT_S)
    bench.run(RuntimeError("Executor failed."))
    bench.settled(EventKind.ENGINE_RECOVERED)
    assert bench.host.replaced == [(0,)]


def test_deadlines_of_steps_are_learned_anew_with_a_recovery(
    make_bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(runtime_dir=str(tmp_path))
    bench.attach()
    relearned = threading.Event()
    assert bench.engine._watch is not None
    monkeypatch.setattr(bench.engine._watch.detector, "relearn", relearned.set)
    bench.run(ValueError("boom"))
    assert relearned.wait(WAIT_S)


def test_without_stall_detection_no_process_is_watched(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    bench = make_bench(runtime_dir=str(tmp_path), stall_detection=False)
    bench.attach()
    assert bench.engine._watch is None


# ---- whatever a sink does, beside the decision


def test_a_sink_that_blocks_delays_no_recovery_and_what_it_loses_is_counted(make_bench: Callable[..., Bench]) -> None:
    blocked, taken = threading.Event(), []

    def block(event: Event, view: InstanceView) -> None:
        blocked.wait(WAIT_S)
        taken.append(event.sequence)

    bench = make_bench({"stuck": block, "quick": lambda event, view: taken.append(-event.sequence)})
    bench.client._sinks[0]._capacity = 2
    bench.client.tell(lambda view: blocked.wait(WAIT_S))
    bench.attach()
    bench.run(ValueError("boom"))
    bench.settled(EventKind.ENGINE_RECOVERED)
    dropped = bench.client.view().dropped
    blocked.set()
    assert bench.client.await_sinks(WAIT_S)
    assert dropped["stuck"] >= len(bench.kinds()) - 3  # two wait, and one is being consumed
    assert [-n for n in taken if n < 0] == [e.sequence for e in bench.client.history()]
    assert [n for n in taken if n > 0] == sorted(n for n in taken if n > 0)


def test_a_sink_that_raises_loses_none_of_the_later_events(make_bench: Callable[..., Bench]) -> None:
    seen = []

    def fail(event: Event, view: InstanceView) -> None:
        seen.append(event.sequence)
        raise OSError("no space left on device")

    bench = make_bench({"failing": fail})
    bench.attach()
    bench.run(ValueError("boom"))
    bench.settled(EventKind.ENGINE_RECOVERED)
    assert bench.client.await_sinks(WAIT_S)
    assert seen == [e.sequence for e in bench.client.history()]
