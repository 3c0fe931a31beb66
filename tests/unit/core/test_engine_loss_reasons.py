"""A lost engine core: what the events say, what is forgotten with the process, and what counts for the next loss."""

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import BeginRecovery, ReplaceEngine, Send
from holdfast.core.protocol.events import EventKind
from support.instance_bench import Bench, a_fault

CONFIG = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)
EXTERNAL = HoldfastConfig(fault_policy="external", external_fallback="auto", engine_recovery_timeout_s=120.0)
LOST = "engine core 0 was lost: killed by signal 9"


def events(bench, kind):
    return [event for event in bench.events if event.kind is kind]


def test_the_events_of_a_loss_say_why_and_what_is_done():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.lost()
    [decided] = events(bench, EventKind.DECISION_MADE)
    [lost] = events(bench, EventKind.ENGINE_LOST)
    assert decided.reason == f"{LOST}; replacing the engine core; engine core restart 1 of 3"
    assert (decided.decision.action, decided.decision.fault_class) == ("restart-engine", FaultClass.TRANSIENT)
    assert (decided.decision.tries, decided.decision.limit, decided.decision.ranks_out) == (1, 3, 0)
    assert (lost.reason, bench.view().reason) == (LOST, LOST)


def test_a_restart_by_an_operator_says_so_in_the_event_and_in_the_status():
    bench = Bench(CONFIG)
    bench.submit(RestartEngine(command_id="e", engine_id=0))
    [lost] = events(bench, EventKind.ENGINE_LOST)
    why = "engine core 0 is restarted: ordered by operator"
    assert (lost.reason, bench.view().reason) == (why, why)


def test_nothing_of_a_lost_process_is_shown():
    bench = Bench(CONFIG, attached=False)
    bench.attached(ranks=2)
    bench.observe(m.RequestsSuspected(engine_id=0, epoch=0, suspects=3, reason="three"))
    assert bench.view().suspects == 3
    bench.lost()
    assert (bench.view().ranks, bench.view().suspects, bench.view().pid) == (0, 0, None)


def test_a_process_that_was_lost_before_a_failed_replacement_is_still_not_heard():
    bench = Bench(CONFIG)
    bench.lost()
    bench.lost()
    assert bench.attached(0, pid=7) == []
    assert bench.attached(0, pid=8) != []


def test_faults_that_belong_to_a_request_are_armed_in_the_replacement_without_an_answer():
    bench = Bench(CONFIG)
    spec = InjectionSpec(phase=Phase.FORWARD, request="poison")
    bench.arm("arm", spec)
    bench.observe(m.EngineAnswered(engine_id=0, command_id="arm"))
    bench.lost()
    assert Send(0, m.ArmFault(command_id="", spec=spec)) in bench.attached(0, pid=8)


def test_losses_in_one_incident_count_however_long_they_take():
    bench = Bench(CONFIG)
    for _ in range(4):
        bench.lost()
        bench.now += 200.0
    assert bench.defeat == f"{LOST}; 3 engine core restarts within 100 s did not last (--max-engine-restarts 3)"


def test_ranks_that_are_out_elsewhere_may_forbid_a_replacement():
    bench = Bench(HoldfastConfig(max_ranks_out=1), engines=(0, 1))
    bench.lost(1)
    bench.lost(0)
    assert bench.view(0).state.value == "left-out" or bench.defeat is not None
    assert "--max-ranks-out" in events(bench, EventKind.DECISION_MADE)[-1].reason


def test_a_lockstep_group_that_nothing_can_join_ends_and_names_each_collective_once():
    bench = Bench(CONFIG, groups=[(0, 1)], attached=False)
    bench.attached(0, unrebuildable=("captured graphs", "a ring"), ranks=2)
    bench.attached(1, unrebuildable=("captured graphs",))
    bench.lost(0)
    assert bench.defeat == (
        f"{LOST}; no replacement could join the lockstep group: captured graphs; a ring cannot be rebuilt in place"
    )
    assert events(bench, EventKind.DECISION_MADE)[-1].decision.action == "end-instance"


def a_trio(config=CONFIG):
    return Bench(config, groups=[(0, 1, 2)])


def test_the_deepest_fault_of_the_remaining_engine_cores_decides_once_a_replacement_has_joined():
    bench = a_trio()
    bench.faulted(0, fault=a_fault(0, "illegal memory access", FaultClass.DEVICE))
    bench.faulted(1, fault=a_fault(1, "boom"))
    bench.lost(2)
    bench.paused(0)
    bench.paused(1)
    bench.attached(2, pid=9)
    bench.paused(2, broken=False)
    decided = events(bench, EventKind.DECISION_MADE)[-1]
    assert (decided.engine_id, decided.decision.fault_class) == (0, FaultClass.DEVICE)
    assert bench.all(BeginRecovery)[-1].replace == {0: (0,)}


def test_a_broken_collective_is_no_fault_of_the_peers_of_a_lost_engine_core():
    bench = a_trio()
    bench.lost(2)
    bench.faulted(0, fault=a_fault(0, "connection closed by peer", FaultClass.COMMUNICATOR))
    bench.lost(1)
    bench.paused(0)
    for engine in (1, 2):
        bench.attached(engine, pid=9)
        bench.paused(engine, broken=False)
    decided = events(bench, EventKind.DECISION_MADE)[-1]
    assert decided.decision.fault_class is None
    assert decided.reason == "the replacement of an engine core joins; collectives are rebuilt"


def test_the_wait_for_a_command_begins_when_the_replacement_reports():
    bench = Bench(HoldfastConfig(fault_policy="external", external_fallback="auto"), groups=[(0, 1)])
    bench.lost(1)
    bench.paused(0)
    bench.now += 500.0
    bench.attached(1, pid=9)
    bench.now += 50.0
    bench.paused(1, broken=False)
    bench.aborted(0)
    bench.aborted(1)
    bench.paused_by_fault(0, broken=True)
    bench.paused_by_fault(1, broken=True)
    assert events(bench, EventKind.DECISION_MADE)[-1].reason == (
        "waiting up to 70 s for a command, then the ladder decides"
    )


def test_a_replacement_of_a_single_engine_core_is_started_at_once_after_the_first_loss_and_later_after_the_second():
    bench = Bench(CONFIG)
    bench.lost()
    bench.lost()
    assert [(order.after_s, order.kill) for order in bench.all(ReplaceEngine)] == [(0.0, False), (1.0, False)]
