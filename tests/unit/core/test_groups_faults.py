"""Lockstep groups in trouble: faults on top of faults, who does not answer, and who answers too late."""

import pytest

from holdfast.core.faults.faults import FaultClass, unresponsive
from holdfast.core.protocol.effects import CloseRendezvous, End, Settle
from holdfast.core.protocol.events import EventKind
from support.groups_bench import LEFT_ALONE, a_pair, orders, paused_by_operator, pauses, recovering, told
from support.instance_bench import AUTO, DEEP, EXTERNAL, NO_RESTARTS, a_fault, is_keepalive, kinds

SILENT = a_fault(1, "rank 0 did not acknowledge", FaultClass.UNRESPONSIVE)


# ---- faults on top of faults


def test_faults_of_two_ranks_at_once_are_one_incident_with_two_causes():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.faulted(1)) == ["fault-reported"]
    bench.paused_by_fault(0)
    bench.paused_by_fault(1)
    assert len(orders(bench)) == 1
    assert [bench.view(e).faults for e in (0, 1)] == [1, 1]


def test_of_two_faults_the_deeper_one_decides():
    bench = a_pair(NO_RESTARTS)
    bench.faulted(0)
    bench.faulted(1, fault=a_fault(1, "illegal memory access", FaultClass.DEVICE))
    bench.paused_by_fault(0)
    assert kinds(bench.paused(1))[-1] == "End"
    assert "the device error is sticky" in bench.defeat


def test_a_peer_that_was_left_alone_in_a_collective_is_no_second_cause():
    bench = a_pair()
    bench.faulted(0)
    assert bench.faulted(1, fault=LEFT_ALONE) == []
    bench.paused_by_fault(0)
    bench.paused_by_fault(1, fault=LEFT_ALONE)
    assert (bench.view(1).faults, bench.events[-1].kind) == (0, EventKind.RECOVERY_STARTED)


def test_a_broken_collective_that_is_noticed_first_does_not_hide_whose_fault_it_was():
    bench = a_pair(EXTERNAL)
    bench.faulted(1, fault=LEFT_ALONE)
    bench.faulted(0)
    bench.paused_by_fault(1, fault=LEFT_ALONE)
    bench.paused_by_fault(0)
    decided = bench.events[-1]
    assert (decided.kind, decided.engine_id) == (EventKind.DECISION_MADE, 0)


def test_a_fault_of_an_engine_that_is_pausing_is_taken_into_the_incident():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.faulted(1, fault=a_fault(1, "mine"))) == ["fault-reported"]
    assert bench.states(0, 1) == ["faulted", "faulted"]
    assert ": mine" in bench.view(1).fault_info


def test_a_fault_of_an_engine_that_is_pausing_does_not_prolong_its_time_to_stand_still():
    bench = a_pair()
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.tick(AUTO.containment_timeout_s - 1.0)
    bench.faulted(1)
    assert kinds(bench.tick(1.0))[-1] == "End"


def test_a_fault_while_rebuilding_lets_nobody_wait_at_the_rendezvous_in_vain():
    bench = recovering()
    assert bench.faulted(0) == [CloseRendezvous((0, 1), 1)]
    assert bench.states(0, 1) == ["recovering", "recovering"]


def test_a_fault_while_rebuilding_fails_the_recovery_and_the_group_is_tried_again():
    bench = recovering()
    bench.faulted(0)
    bench.aborted(0)
    bench.aborted(1)
    assert [o.epoch for o in orders(bench)] == [1, 2]
    bench.recovered(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_device_error_while_rebuilding_restarts_its_rank_although_both_aborts_look_transient():
    bench = recovering()
    bench.faulted(0, fault=DEEP)
    bench.aborted(0)
    bench.aborted(1)
    assert orders(bench)[-1].replace == {0: (0,)}


def test_a_device_error_while_rebuilding_ends_the_instance_where_workers_are_not_restarted():
    bench = recovering(NO_RESTARTS)
    bench.faulted(0, fault=DEEP)
    bench.aborted(0)
    bench.aborted(1)
    assert "illegal memory access" in bench.defeat


def test_a_fault_of_who_recovered_first_while_its_peer_still_rebuilds_closes_the_rendezvous():
    bench = recovering()
    bench.recovered(0)
    assert kinds(bench.faulted(0)) == ["fault-reported", "CloseRendezvous"]
    assert bench.states(0, 1) == ["faulted", "recovering"]
    bench.paused_by_fault(0)
    bench.aborted(1)
    assert [o.epoch for o in orders(bench)] == [1, 2]


def test_a_fault_that_overtakes_the_report_of_its_engine_is_kept_until_the_peer_is_done_too():
    bench = recovering()
    bench.faulted(0, fault=a_fault(0, "next"))
    assert kinds(bench.recovered(0)) == ["engine-recovered"]
    ended = bench.recovered(1)
    assert kinds(ended) == ["engine-recovered", "Settle", "fault-reported", "Send", "pause-ordered"]
    assert (ended[1].error, pauses(ended)) == (None, [(1, False)])
    assert bench.states(0, 1) == ["faulted", "pausing"]


def test_an_engine_that_resumed_and_stands_again_while_its_peer_resumes_is_recovered_with_it():
    bench = recovering()
    bench.recovered(0)
    assert kinds(bench.paused_by_fault(0)) == ["fault-reported", "engine-paused"]
    assert pauses(bench.recovered(1)) == [(1, False)]
    assert kinds(bench.paused(1))[:3] == ["engine-paused", "decision-made", "BeginRecovery"]
    assert [o.epoch for o in orders(bench)] == [1, 2]


def test_an_engine_that_stands_again_without_a_word_on_how_its_recovery_ended_has_failed_it():
    bench = recovering(EXTERNAL)
    bench.paused(0)
    assert bench.states(0, 1) == ["paused", "recovering"]
    bench.recovered(1)
    assert [(s.command_id, s.error is None) for s in bench.all(Settle)] == [("cmd", False)]


# ---- who does not answer


def test_a_rank_that_does_not_acknowledge_gets_a_new_process_once_everybody_stands():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.faulted(1, fault=SILENT)) == ["fault-reported"]
    bench.paused_by_fault(0)
    bench.paused_by_fault(1, fault=SILENT)
    assert [o.replace for o in orders(bench)] == [{1: (0,)}]


def test_an_engine_core_that_does_not_answer_ends_the_instance_before_anybody_stands():
    bench = a_pair()
    bench.faulted(0)
    ended = bench.faulted(1, fault=unresponsive(1, "no word"))
    assert told(ended) == [(e, "EndEngine") for e in range(4)]
    assert isinstance(ended[-1], End)
    assert "a rank did not answer in time" in bench.defeat


def test_an_engine_that_was_told_to_pause_and_does_not_stand_ends_the_instance():
    bench = a_pair()
    bench.faulted(0)
    bench.paused_by_fault(0)
    assert [e for e in bench.tick(AUTO.containment_timeout_s - 0.1) if not is_keepalive(e)] == []
    assert kinds(bench.tick(0.1))[-1] == "End"
    assert bench.defeat.startswith("engine 1 was told to pause and did not pause within 30 s; ")


def test_a_peer_that_never_ends_its_recovery_ends_the_instance_and_the_command():
    bench = recovering(EXTERNAL)
    bench.recovered(0)
    bound_s = EXTERNAL.containment_timeout_s + EXTERNAL.drain_timeout_s + EXTERNAL.rebuild_timeout_s
    bench.tick(bound_s - 0.1)
    assert bench.defeat is None
    bench.tick(0.1)
    assert bench.defeat.startswith("engine 1 did not finish its recovery in time; ")
    assert [s.command_id for s in bench.all(Settle)] == ["cmd"]


def test_the_loss_of_one_engine_core_of_a_group_ends_the_instance_whatever_its_peer_does():
    bench = recovering()
    assert kinds(bench.lost(1))[-1] == "End"
    assert set(bench.states(0, 1, 2, 3)) == {"dead"}


# ---- stale reports


@pytest.mark.parametrize("engine", [0, 1])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_report_of_another_epoch_changes_nothing_on_either_side(engine, epoch):
    bench = recovering()
    before = bench.instance.view()
    for report in (bench.faulted, bench.paused_by_fault, bench.paused, bench.recovered, bench.aborted):
        assert report(engine, epoch=epoch) == []
    assert bench.instance.view() == before


def test_a_report_of_another_command_changes_nothing():
    bench = recovering()
    before = bench.instance.view()
    assert bench.recovered(1, command_id="old") == bench.aborted(0, command_id="old") == []
    assert bench.instance.view() == before


def test_the_end_of_a_recovery_counts_once_for_an_engine_and_not_for_its_peer():
    bench = recovering()
    bench.recovered(0)
    assert bench.recovered(0) == bench.aborted(0) == []
    assert bench.states(0, 1) == ["healthy", "recovering"]


def test_broken_collectives_of_an_old_epoch_are_not_rebuilt_in_the_new_one():
    bench = paused_by_operator(soft=True)
    bench.resume("resume", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.paused(0, epoch=0, broken=True)
    bench.pause("again", 0, soft=True)
    for engine in (0, 1):
        bench.paused(engine, broken=False)
    bench.resume("resume again", 0)
    assert [o.rebuild for o in orders(bench)] == [False, False]
