"""What an instance does because time has passed, and what reports leave for later ticks."""

import itertools

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.instance.instance import Instance
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import LeaveOut, Publish, ReplaceEngine, Send
from holdfast.core.protocol.events import EventKind
from support.instance_bench import AUTO, DEEP, NO_RESTARTS, Bench, a_fault, is_keepalive

RESTARTS = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0, containment_timeout_s=30.0)
NO_REPAIR = HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=0)


def events(bench, kind):
    return [event for event in bench.events if event.kind is kind]


def test_an_instance_shows_where_external_faults_are_notified_and_nothing_by_default():
    def shown(**about):
        made = Instance([(0,)], AUTO, wall_clock=lambda: 0.0, new_command_id=str, instance_id="this-life", **about)
        return made.view().notify_address

    assert (shown(), shown(notify_address="tcp://host:1")) == ("", "tcp://host:1")


def test_an_engine_core_that_attaches_while_its_peer_is_paused_has_a_bound_to_pause_in():
    bench = Bench(NO_RESTARTS, groups=[(0, 1)], attached=False)
    bench.attached(0)
    bench.faulted(0)
    bench.attached(1)
    bench.tick(29.0)
    assert bench.states(0, 1) == ["faulted", "pausing"]


def test_a_peer_is_told_to_pause_in_the_epoch_of_the_fault():
    bench = Bench(groups=[(0, 1)])
    bench.faulted(0)
    assert bench.all(Send) == [Send(1, m.PauseEngine(command_id="own-1", epoch=0))]


def test_every_engine_core_that_is_killed_in_time_counts_against_the_restarts():
    bench = Bench(RESTARTS)
    for restart in (1, 2):
        bench.faulted()
        bench.tick(30.0)
        assert bench.view().restarts == restart
        bench.attached(0, pid=7 + restart)
    assert events(bench, EventKind.DECISION_MADE)[-1].decision.tries == 2


def test_a_loss_that_no_replacement_can_follow_ends_the_instance_with_both_reasons():
    bench = Bench(RESTARTS)
    bench.did(bench.instance.lost(0, "killed by signal 9", bench.now, "the host is too old"))
    assert bench.defeat == "engine core 0 was lost: killed by signal 9; the host is too old"


def test_an_engine_core_that_was_left_out_is_started_again_with_the_reason():
    bench = Bench(HoldfastConfig(max_engine_restarts=1, engine_restart_window_s=100.0), engines=(0, 1))
    bench.lost(0)
    bench.lost(0)
    assert bench.states(0) == ["left-out"]
    bench.tick(100.0)
    why = "engine core 0 was left out for 100 s and is started again"
    assert events(bench, EventKind.ENGINE_LOST)[-1].reason == why
    order = bench.all(ReplaceEngine)[-1]
    assert (order.engine_id, order.after_s, order.kill) == (0, 0.0, False)


def test_an_engine_core_that_nothing_repairs_is_left_out_with_the_reason():
    bench = Bench(NO_REPAIR, engines=(0, 1))
    bench.faulted(0)
    bench.paused_by_fault(0)
    reason = (
        "0 retries within 60 s did not last (--max-retries 0); last fault: RuntimeError in engine 0, rank 0: boom; "
        "engine core restarts are off (--max-engine-restarts 0); left out, 1 engine cores serve on; not tried again"
    )
    assert (bench.view(0).reason, events(bench, EventKind.ENGINE_LOST)[-1].reason) == (reason, reason)
    assert [(order.engine_id, order.kill) for order in bench.all(LeaveOut)] == [(0, True)]


def test_a_lockstep_group_that_cannot_be_rebuilt_ends_without_a_word_on_replacements():
    bench = Bench(RESTARTS, groups=[(0, 1)], attached=False)
    bench.attached(0, unrebuildable=("a ring",))
    bench.attached(1)
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.paused(1)
    assert bench.defeat == (
        "broken collectives cannot be rebuilt in place (a ring); fault: RuntimeError in engine 0, rank 0: boom"
    )


def test_a_broken_collective_that_comes_first_is_a_fault_of_its_engine_core():
    bench = Bench()
    broken = a_fault(0, "connection closed by peer", FaultClass.COMMUNICATOR)
    bench.faulted(fault=broken)
    assert bench.view().faults == 1
    assert [event.fault for event in events(bench, EventKind.FAULT_REPORTED)] == [broken]


def test_a_lighter_fault_does_not_replace_a_deeper_one_in_the_status():
    bench = Bench()
    bench.faulted(fault=DEEP)
    bench.faulted(fault=a_fault(message="boom"))
    assert bench.view().fault_info == DEEP.summary()


def test_a_keepalive_and_the_next_try_may_be_due_at_the_same_tick():
    bench = Bench(HoldfastConfig(engine_recovery_timeout_s=2.0, containment_timeout_s=1.0, max_engine_restarts=0))
    bench.faulted(fault=DEEP)
    bench.paused_by_fault(fault=DEEP)
    for _ in range(2):
        bench.aborted(fault=DEEP)
    assert bench.states(0) == ["paused"]
    effects = bench.tick(1.0)
    assert is_keepalive(effects[0])
    assert bench.states(0) == ["recovering"]


def test_a_new_coordinator_is_introduced_once_at_each_time():
    bench = Bench()
    bench.did(bench.instance.process_lost("coordinator", "exit code 3", bench.now))
    bench.did(bench.instance.process_returned("coordinator", bench.now))
    told = [len(bench.tick(after_s)) for after_s in (0.5, 0.5, 0.0, 4.0, 0.0)]
    assert told == [0, 1, 0, 1, 0]


def test_events_are_numbered_and_dated_and_name_the_epoch():
    clock = itertools.count(500.0)
    instance = Instance(
        [(0,)], AUTO, wall_clock=lambda: next(clock), new_command_id=lambda: "own", instance_id="this-life"
    )
    reports = [
        m.EngineAttached(engine_id=0, pid=7, hooks=(), workers=()),
        m.EngineFaulted(engine_id=0, pid=7, epoch=0, fault=a_fault()),
        m.EnginePaused(engine_id=0, pid=7, epoch=0, fault=a_fault(), unfinished_requests=0),
    ]
    told = [e.event for report in reports for e in instance.observe(report, 1.0) if isinstance(e, Publish)]
    assert [(event.sequence, event.at) for event in told] == [(n, 500.0 + n) for n in range(1, 6)], (
        "the first reading dates the start"
    )
    assert [event.epoch for event in told] == [0, 0, 0, 0, 1]
    assert {event.instance_id for event in told} == {instance.view().instance_id} == {"this-life"}
    assert instance.view().sequence == 5


def test_a_pause_by_an_operator_outlasts_a_loss_while_another_group_is_still_pausing():
    bench = Bench(RESTARTS, engines=(0, 1))
    bench.pause("p", 0)
    bench.paused(0)
    bench.pause("q", 1)
    bench.lost(0)
    bench.attached(0, pid=9)
    assert bench.states(0, 1) == ["pausing", "pausing"]


def test_ranks_that_are_out_in_a_lost_engine_core_do_not_forbid_its_replacement():
    bench = Bench(HoldfastConfig(max_ranks_out=1), engines=(0, 1), attached=False)
    bench.attached(0, ranks=3)
    bench.attached(1, ranks=3)
    bench.faulted(0, fault=DEEP)
    bench.lost(0)
    assert bench.states(0, 1) == ["restarting", "healthy"]
