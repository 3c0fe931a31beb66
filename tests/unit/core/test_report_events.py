"""Reports of engine cores: the events that they become, the counts, and the bounds that begin with them."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import BeginRecovery, Send, Settle
from holdfast.core.protocol.events import EventKind
from support.groups_bench import a_pair, recovering
from support.instance_bench import AUTO, DEEP, EXTERNAL, Bench, a_fault

RESTARTS = HoldfastConfig(max_engine_restarts=3, containment_timeout_s=30.0)
SILENT = "paused again without a report on its recovery"


def events(bench, kind):
    return [event for event in bench.events if event.kind is kind]


def no_bound_is_over_yet(bench):
    """Return whether the engine cores are what they were, a moment later."""
    before = [status.state for status in bench.instance.view().engines]
    bench.tick(1.0)
    return [status.state for status in bench.instance.view().engines] == before


def test_the_event_of_a_pause_names_the_fault():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    assert [event.fault for event in events(bench, EventKind.ENGINE_PAUSED)] == [a_fault()]


def test_recoveries_and_restarted_workers_are_counted_and_named_with_their_command():
    bench = Bench(AUTO, attached=False)
    bench.attached(0, ranks=3)
    for replaced in ((0, 1), (2,)):
        bench.faulted()
        bench.paused_by_fault()
        bench.recovered(replaced=replaced)
    assert (bench.view().recoveries, bench.view().worker_restarts, bench.view().faults) == (2, 3, 2)
    assert [event.command_id for event in events(bench, EventKind.ENGINE_RECOVERED)] == ["own-1", "own-2"]


def test_a_failed_recovery_is_an_event_with_its_command_and_fault_and_counts_as_a_fault():
    bench = Bench(AUTO)
    bench.faulted()
    bench.paused_by_fault()
    again = a_fault(message="again")
    bench.aborted(fault=again)
    bench.aborted(fault=again)
    failed = [(event.command_id, event.fault) for event in events(bench, EventKind.RECOVERY_FAILED)]
    assert failed == [("own-1", again), ("own-2", again)]
    assert bench.view().faults == 3


def test_an_engine_core_that_is_paused_again_without_a_word_has_failed_its_recovery():
    bench = Bench(HoldfastConfig(max_engine_restarts=0))
    bench.faulted()
    bench.paused_by_fault()
    bench.paused()
    [failed] = events(bench, EventKind.RECOVERY_FAILED)
    assert (failed.fault.message, failed.fault.engine_id) == (SILENT, 0)


def test_a_second_report_of_a_pause_does_not_take_back_that_a_search_has_progressed():
    bench = a_pair(AUTO)
    bench.faulted(0)
    about = {"engine_id": 0, "epoch": 0, "fault": a_fault(), "unfinished_requests": 2, "broken": True}
    bench.observe(m.EnginePaused(**about, search_progressed=True))
    bench.observe(m.EnginePaused(**about, search_progressed=False))
    bench.paused(1)
    assert events(bench, EventKind.DECISION_MADE)[-1].reason == (
        "the search for a poison request has fewer suspects now: not counted as a try"
    )


def test_of_two_faults_during_a_recovery_the_deeper_one_is_kept():
    bench = recovering()
    bench.faulted(0, fault=DEEP)
    bench.faulted(0, fault=a_fault(0, "boom"))
    bench.recovered(0)
    bench.recovered(1)
    assert bench.view(0).fault_info == DEEP.summary()


def test_a_peer_of_an_engine_core_that_pauses_unasked_has_a_bound_to_pause_in():
    bench = a_pair()
    bench.paused_by_fault(0)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert no_bound_is_over_yet(bench)


def test_a_peer_of_a_failed_recovery_has_a_bound_to_pause_in():
    bench = recovering()
    bench.recovered(1)
    bench.aborted(0)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert no_bound_is_over_yet(bench)


def test_an_engine_core_that_recovers_beside_a_failed_peer_has_a_bound_to_pause_in():
    bench = recovering()
    bench.aborted(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert no_bound_is_over_yet(bench)


def test_a_replacement_in_lockstep_has_a_bound_to_pause_in():
    bench = Bench(RESTARTS, groups=[(0, 1)])
    bench.lost(1)
    bench.paused(0)
    bench.attached(1, pid=9)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert no_bound_is_over_yet(bench)
    bench.paused(1, broken=False)
    assert bench.all(BeginRecovery)[-1].rebuild


def test_an_engine_core_that_attaches_beside_a_paused_peer_has_a_bound_to_pause_in():
    bench = Bench(AUTO, groups=[(0, 1)], attached=False)
    bench.attached(0)
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.attached(1)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert no_bound_is_over_yet(bench)


def test_a_broken_collective_after_a_fault_of_the_peer_is_no_second_fault():
    bench = a_pair()
    bench.faulted(0)
    bench.faulted(1, fault=a_fault(1, "connection closed by peer", FaultClass.COMMUNICATOR))
    assert (bench.view(0).faults, bench.view(1).faults) == (1, 0)


def test_a_fault_after_every_engine_core_has_recovered_does_not_fail_the_command():
    bench = recovering(EXTERNAL)
    bench.recovered(0)
    bench.faulted(0)
    bench.recovered(1)
    assert bench.all(Settle) == [Settle("cmd")]
    assert bench.states(0, 1) == ["faulted", "pausing"]


def test_a_fault_that_overtook_its_recovery_is_recorded_although_the_peer_failed():
    bench = recovering()
    bench.faulted(0, fault=DEEP)
    bench.recovered(0)
    bench.aborted(1)
    assert events(bench, EventKind.FAULT_REPORTED)[-1].fault == DEEP
    assert bench.states(0, 1) == ["faulted", "paused"]
    assert no_bound_is_over_yet(bench)


def test_failed_retries_cause_no_backoff_in_the_worker_restarts_after_them():
    bench = Bench(AUTO)
    bench.faulted()
    bench.paused_by_fault()
    for pause_s in (0.0, 1.0, 0.0, 0.0):
        bench.aborted()
        bench.tick(after_s=pause_s)
    decided = [event.decision.action for event in events(bench, EventKind.DECISION_MADE)]
    actions = [action for action in decided if action != "await-instruction"]
    assert actions == ["retry"] * 3 + ["restart-workers"] * 2


@pytest.mark.parametrize("engine", [0, 1])
def test_a_restart_of_either_engine_core_of_a_group_ends_once_both_serve(engine):
    bench = Bench(RESTARTS, groups=[(0, 1)])
    bench.submit(RestartEngine(command_id="a", engine_id=engine))
    bench.paused(1 - engine)
    bench.attached(engine, pid=9)
    bench.paused(engine, broken=False)
    bench.recovered(0)
    bench.recovered(1)
    assert Settle("a") in bench.all(Settle)


def test_suspected_requests_are_an_event_with_their_number_and_the_reason():
    bench = Bench(AUTO)
    bench.observe(m.RequestsSuspected(engine_id=0, epoch=0, suspects=4, reason="4 of 8 requests were in the step"))
    [event] = events(bench, EventKind.REQUESTS_SUSPECTED)
    assert (event.suspects, event.reason) == (4, "4 of 8 requests were in the step")


def test_ranks_that_are_out_are_counted_over_the_whole_instance():
    bench = Bench(HoldfastConfig(max_ranks_out=1), engines=(0, 1), attached=False)
    bench.attached(0, ranks=3)
    bench.attached(1, ranks=2)
    bench.lost(0)
    bench.lost(1)
    decided = events(bench, EventKind.DECISION_MADE)[-1]
    assert decided.decision.ranks_out == 3
    assert "; 5 of 5 ranks would be out at once (--max-ranks-out 1)" in decided.reason


def test_a_command_that_fits_no_group_names_the_group_that_is_unwell():
    bench = Bench(AUTO, engines=(0, 1, 2))
    bench.faulted(1)
    with pytest.raises(CommandConflict) as caught:
        bench.retry(engine=None)
    assert str(caught.value).startswith("engine 1 is faulted, there is nothing to retry")


def test_every_request_that_is_ended_is_counted():
    bench = Bench(AUTO)
    for request_id in ("a", "b"):
        bench.observe(m.RequestEnded(engine_id=0, epoch=0, request_id=request_id, incident="i", reason="poison"))
    assert bench.view().ended_requests == 2


def test_faults_of_two_engine_cores_that_overtook_their_recoveries_are_both_recorded():
    bench = recovering()
    for engine in (0, 1):
        bench.faulted(engine, fault=a_fault(engine, f"later {engine}"))
    before = len(events(bench, EventKind.FAULT_REPORTED))
    bench.recovered(0)
    bench.recovered(1)
    told = [event.fault.message for event in events(bench, EventKind.FAULT_REPORTED)[before:]]
    assert told == ["later 0", "later 1"]


def test_a_fault_that_overtook_its_recovery_begins_an_incident_with_bounds_of_its_own():
    bench = recovering()
    bench.faulted(0, fault=a_fault(0, "later"))
    bench.recovered(0)
    bench.now += 5.0
    bench.recovered(1)
    assert bench.states(0, 1) == ["faulted", "pausing"]
    assert no_bound_is_over_yet(bench)
    bench.paused_by_fault(0, broken=True)
    bench.paused(1)
    bench.recovered(0)
    assert events(bench, EventKind.ENGINE_RECOVERED)[-1].interruption_s == 1.0


def test_an_armed_fault_is_an_event_with_its_command():
    bench = Bench(AUTO)
    bench.arm("arm")
    bench.observe(m.EngineAnswered(engine_id=0, command_id="arm"))
    assert [event.command_id for event in events(bench, EventKind.FAULT_ARMED)] == ["arm"]


def test_a_replacement_in_lockstep_starts_paused_and_is_not_ordered_to_pause():
    bench = Bench(RESTARTS, groups=[(0, 1)])
    bench.lost(1)
    bench.paused(0)
    assert not [e for e in bench.attached(1, pid=9) if isinstance(e, Send)]
