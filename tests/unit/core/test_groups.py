"""Lockstep groups: engines that share collectives pause together, recover under one epoch, go on together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core import messages as m
from holdfast.core.effects import CloseRendezvous, End, OrderRecovery, Publish, Send, Settle
from holdfast.core.errors import InstructionConflict, UnknownEngine
from holdfast.core.events import EventKind
from holdfast.core.faults import FaultClass
from holdfast.core.injection import InjectionSpec
from holdfast.core.instance import AFFIRM_S, SOFT_PAUSE_S
from holdfast.core.states import EngineState
from support.instance_bench import AUTO, DEEP, EXTERNAL, SPEC, Bench, a_fault, is_affirming, kinds

LEFT_ALONE = a_fault(1, "connection closed by peer", FaultClass.COMMUNICATOR)
SILENT = a_fault(1, "rank 0 did not acknowledge", FaultClass.UNRESPONSIVE)
CANNOT = ("custom all-reduce",)


def a_pair(config=AUTO, attached=True):
    """Engines 0 and 1 in lockstep, and two that wait for nobody."""
    return Bench(config, groups=[(0, 1), (2,), (3,)], attached=attached)


def two_pairs(config=AUTO):
    return Bench(config, groups=[(0, 1), (2, 3)])


def paused_after_a_fault(config=EXTERNAL):
    """Both engines of the pair stand, the operator is to decide."""
    bench = a_pair(config)
    bench.faulted(0)
    bench.held(0, broken=True)
    bench.stands(1)
    return bench


def recovering(config=AUTO):
    bench = paused_after_a_fault(config)
    if config is EXTERNAL:
        bench.retry("cmd", 0)
    assert bench.states(0, 1) == ["recovering", "recovering"]
    return bench


def paused_by_hand(config=AUTO, soft=False):
    bench = a_pair(config)
    bench.pause("pause", 0, soft=soft)
    bench.stands(0, broken=not soft)
    bench.stands(1, broken=not soft)
    return bench


def told(effects):
    """Which engines are told what, in the order they are told."""
    return [(e.engine_id, type(e.message).__name__) for e in effects if isinstance(e, Send)]


def pauses(effects):
    return [(e.engine_id, e.message.soft) for e in effects if isinstance(e, Send) and _is_pause(e.message)]


def _is_pause(message):
    return isinstance(message, m.PauseEngine) and message.command_id != ""


def orders(bench):
    return bench.all(OrderRecovery)


# ---- a fault pauses the peers, and only them


def test_engines_of_a_group_know_whom_they_pause_with():
    assert [a_pair().view(e).lockstep_with for e in range(4)] == [(1,), (0,), (), ()]


@pytest.mark.parametrize(("culprit", "peer"), [(0, 1), (1, 0)])
def test_a_fault_pauses_the_peer_at_once_and_hard(culprit, peer):
    bench = a_pair()
    faulted = bench.faulted(culprit)
    assert kinds(faulted) == ["fault-reported", "Send", "pause-ordered"]
    assert pauses(faulted) == [(peer, False)]
    assert bench.states(culprit, peer) == ["faulted", "pausing"]


def test_engines_of_other_groups_run_on():
    bench = two_pairs()
    before = [bench.view(e) for e in (2, 3)]
    for happens in (bench.faulted, bench.held):
        happens(0)
        assert [bench.view(e) for e in (2, 3)] == before
    bench.stands(1)
    bench.aborted(0)
    bench.aborted(1)
    assert [bench.view(e) for e in (2, 3)] == before
    assert bench.instance.view().ready


def test_the_event_says_why_a_peer_is_paused():
    bench = a_pair()
    bench.faulted(1)
    ordered = bench.events[-1]
    assert (ordered.kind, ordered.engine_id) == (EventKind.PAUSE_ORDERED, 0)
    assert ordered.reason == "engine 1 of its lockstep group stands still"


def test_a_peer_that_was_told_to_pause_has_no_fault():
    bench = paused_after_a_fault()
    assert (bench.view(1).fault, bench.view(1).faults) == (None, 0)
    assert (bench.view(0).fault, bench.view(0).faults) == (a_fault(0), 1)


def test_an_engine_that_stands_still_without_a_word_before_pauses_its_peer_too():
    bench = a_pair()
    assert pauses(bench.held(1)) == [(0, False)]


def test_an_engine_that_attaches_while_its_peer_stands_is_paused_at_once():
    bench = a_pair(attached=False)
    bench.attached(0)
    bench.faulted(0)
    bench.held(0)
    assert bench.states(0, 1) == ["paused", "starting"]
    assert pauses(bench.attached(1)) == [(1, False)]


def test_a_bigger_group_pauses_whole():
    bench = Bench(groups=[(0, 1, 2, 3)])
    assert pauses(bench.faulted(2)) == [(0, False), (1, False), (3, False)]


# ---- a decision once all stand still


def test_nothing_is_decided_before_everybody_stands_still():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.held(0)) == ["engine-paused"]
    assert kinds(bench.stands(1)) == [
        "engine-paused",
        "decision-made",
        "OrderRecovery",
        "recovery-started",
        "recovery-started",
    ]


def test_it_does_not_matter_who_stands_first():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.stands(1)) == ["engine-paused"]
    assert kinds(bench.held(0))[1:3] == ["decision-made", "OrderRecovery"]


def test_the_whole_group_recovers_under_one_epoch_and_rebuilds_what_was_broken():
    bench = recovering()
    assert orders(bench) == [OrderRecovery((0, 1), "own-2", 1, rebuild=True)]
    assert [bench.view(e).epoch for e in range(4)] == [1, 1, 0, 0]


def test_the_decision_is_told_of_the_engine_that_is_to_blame():
    bench = a_pair()
    bench.faulted(1)
    bench.held(1)
    bench.stands(0)
    decided = next(e for e in bench.events if e.kind is EventKind.DECISION_MADE)
    assert decided.engine_id == 1
    assert "its collectives are rebuilt" in decided.reason


def test_the_command_ends_once_both_have_recovered():
    bench = recovering()
    assert kinds(bench.recovered(1)) == ["engine-recovered"]
    assert kinds(bench.recovered(0)) == ["engine-recovered", "Settle"]
    assert bench.states(0, 1) == ["healthy", "healthy"]
    assert [bench.view(e).fault for e in (0, 1)] == [None, None]


def test_the_interruption_of_each_engine_counts_from_the_first_fault_of_the_group():
    bench = a_pair()
    bench.faulted(0)
    bench.now += 2.0
    bench.held(0)
    bench.stands(1)
    bench.now += 1.0
    bench.recovered(1)
    bench.now += 1.0
    bench.recovered(0)
    assert {e.engine_id: e.interruption_s for e in bench.events if e.interruption_s} == {1: 3.0, 0: 4.0}


def test_a_recovery_of_the_group_is_one_retry_and_not_one_for_each_engine():
    bench = a_pair()
    for _ in range(AUTO.max_retries):
        bench.faulted(0)
        bench.held(0)
        bench.stands(1)
        bench.recovered(0)
        bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]
    bench.faulted(0)
    bench.held(0)
    assert kinds(bench.stands(1))[-1] == "End"


def test_a_group_that_came_softly_to_a_stand_has_nothing_to_rebuild():
    bench = paused_by_hand(soft=True)
    bench.resume("resume", 0)
    assert [o.rebuild for o in orders(bench)] == [False]


def test_a_single_rank_has_nothing_to_rebuild_even_after_a_hard_pause():
    bench = a_pair()
    bench.pause("pause", 2)
    bench.stands(2, broken=False)
    bench.resume("resume", 2)
    assert orders(bench) == [OrderRecovery((2,), "resume", 1, rebuild=False)]


# ---- both or neither


def test_a_recovery_that_fails_on_one_side_closes_the_rendezvous_where_the_other_waits():
    bench = recovering(EXTERNAL)
    assert kinds(bench.aborted(0)) == ["recovery-failed", "CloseRendezvous"]
    assert bench.all(CloseRendezvous) == [CloseRendezvous((0, 1), 1)]
    assert bench.states(0, 1) == ["paused", "recovering"]


def test_without_a_rendezvous_there_is_none_to_close():
    bench = paused_by_hand(soft=True)
    bench.resume("resume", 0)
    bench.aborted(0)
    assert bench.all(CloseRendezvous) == []


def test_who_recovered_before_its_peer_failed_is_paused_again():
    bench = recovering(EXTERNAL)
    bench.recovered(0)
    failed = bench.aborted(1)
    assert pauses(failed) == [(0, False)]
    assert bench.all(Settle) == [Settle("cmd", error=a_fault(1, "again").summary())]
    assert bench.states(0, 1) == ["pausing", "paused"]


def test_who_recovers_after_its_peer_failed_is_paused_again():
    bench = recovering(EXTERNAL)
    bench.aborted(1)
    assert pauses(bench.recovered(0)) == [(0, False)]
    assert bench.states(0, 1) == ["pausing", "paused"]


def test_who_recovers_after_a_peer_failed_does_not_run_on_until_the_last_peer_is_done():
    bench = Bench(EXTERNAL, groups=[(0, 1, 2)])
    for engine in (0, 1, 2):
        bench.stands(engine) if engine else bench.held(0)
    bench.retry("cmd", 0)
    bench.aborted(1)
    assert pauses(bench.recovered(0)) == [(0, False)]
    assert bench.states(0, 1, 2) == ["pausing", "paused", "recovering"]
    assert bench.all(Settle) == []


def test_both_are_tried_again_under_the_next_epoch_once_both_stand_again():
    bench = recovering()
    bench.recovered(0)
    bench.aborted(1)
    assert kinds(bench.stands(0))[:3] == ["engine-paused", "decision-made", "OrderRecovery"]
    assert [(o.engine_ids, o.epoch) for o in orders(bench)] == [((0, 1), 1), ((0, 1), 2)]
    bench.recovered(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_recovery_that_fails_on_both_sides_is_tried_again_at_once():
    bench = recovering()
    bench.aborted(0)
    assert kinds(bench.aborted(1))[:4] == ["recovery-failed", "CloseRendezvous", "Settle", "decision-made"]
    assert [o.epoch for o in orders(bench)] == [1, 2]


def test_a_group_whose_recoveries_fail_ends_when_the_retries_are_used_up():
    bench = recovering()
    for _ in range(AUTO.max_retries):
        bench.aborted(0)
        bench.aborted(1)
    assert "3 retries within 60 s did not last" in bench.defeat
    assert len(orders(bench)) == AUTO.max_retries
    assert len(bench.all(End)) == 1


# ---- faults on top of faults


def test_faults_of_two_ranks_at_once_are_one_incident_with_two_causes():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.faulted(1)) == ["fault-reported"]
    bench.held(0)
    bench.held(1)
    assert len(orders(bench)) == 1
    assert [bench.view(e).faults for e in (0, 1)] == [1, 1]


def test_of_two_faults_the_deeper_one_decides():
    bench = a_pair()
    bench.faulted(0)
    bench.faulted(1, fault=a_fault(1, "illegal memory access", FaultClass.DEVICE))
    bench.held(0)
    assert kinds(bench.stands(1))[-1] == "End"
    assert "the device error is sticky" in bench.defeat


def test_a_peer_that_was_left_alone_in_a_collective_is_no_second_cause():
    bench = a_pair()
    bench.faulted(0)
    assert bench.faulted(1, fault=LEFT_ALONE) == []
    bench.held(0)
    bench.held(1, fault=LEFT_ALONE)
    assert (bench.view(1).faults, bench.events[-1].kind) == (0, EventKind.RECOVERY_STARTED)


def test_a_broken_collective_that_is_noticed_first_does_not_hide_whose_fault_it_was():
    bench = a_pair(EXTERNAL)
    bench.faulted(1, fault=LEFT_ALONE)
    bench.faulted(0)
    bench.held(1, fault=LEFT_ALONE)
    bench.held(0)
    decided = bench.events[-1]
    assert (decided.kind, decided.engine_id) == (EventKind.DECISION_MADE, 0)


def test_a_fault_of_an_engine_that_is_pausing_is_taken_into_the_incident():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.faulted(1, fault=a_fault(1, "mine"))) == ["fault-reported"]
    assert bench.states(0, 1) == ["faulted", "faulted"]
    assert bench.view(1).fault.message == "mine"


def test_a_fault_of_an_engine_that_is_pausing_does_not_prolong_its_time_to_stand_still():
    bench = a_pair()
    bench.faulted(0)
    bench.held(0)
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


def test_a_device_error_while_rebuilding_ends_the_instance_although_both_aborts_look_transient():
    bench = recovering()
    bench.faulted(0, fault=DEEP)
    bench.aborted(0)
    bench.aborted(1)
    assert "illegal memory access" in bench.defeat


def test_a_fault_of_who_recovered_first_while_its_peer_still_rebuilds_closes_the_rendezvous():
    bench = recovering()
    bench.recovered(0)
    assert kinds(bench.faulted(0)) == ["fault-reported", "CloseRendezvous"]
    assert bench.states(0, 1) == ["faulted", "recovering"]
    bench.held(0)
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
    assert kinds(bench.held(0)) == ["fault-reported", "engine-paused"]
    assert pauses(bench.recovered(1)) == [(1, False)]
    assert kinds(bench.stands(1))[:3] == ["engine-paused", "decision-made", "OrderRecovery"]
    assert [o.epoch for o in orders(bench)] == [1, 2]


def test_an_engine_that_stands_again_without_a_word_on_how_its_recovery_ended_has_failed_it():
    bench = recovering(EXTERNAL)
    bench.stands(0)
    assert bench.states(0, 1) == ["paused", "recovering"]
    bench.recovered(1)
    assert [(s.command_id, s.error is None) for s in bench.all(Settle)] == [("cmd", False)]


# ---- who does not answer


def test_a_rank_that_does_not_acknowledge_ends_the_instance_before_anybody_stands():
    bench = a_pair()
    bench.faulted(0)
    ended = bench.faulted(1, fault=SILENT)
    assert told(ended) == [(e, "EndEngine") for e in range(4)]
    assert isinstance(ended[-1], End)
    assert "a rank did not answer in time" in bench.defeat


def test_an_engine_that_was_told_to_pause_and_does_not_stand_ends_the_instance():
    bench = a_pair()
    bench.faulted(0)
    bench.held(0)
    assert [e for e in bench.tick(AUTO.containment_timeout_s - 0.1) if not is_affirming(e)] == []
    assert kinds(bench.tick(0.1))[-1] == "End"
    assert bench.defeat == "engine 1 was told to pause and did not stand still within 30 s"


def test_a_peer_that_never_ends_its_recovery_ends_the_instance_and_the_command():
    bench = recovering(EXTERNAL)
    bench.recovered(0)
    bound_s = EXTERNAL.containment_timeout_s + EXTERNAL.drain_timeout_s + EXTERNAL.rebuild_timeout_s
    bench.tick(bound_s - 0.1)
    assert bench.defeat is None
    bench.tick(0.1)
    assert bench.defeat == "engine 1 did not end its recovery in time"
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
    for report in (bench.faulted, bench.held, bench.stands, bench.recovered, bench.aborted):
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
    bench = paused_by_hand(soft=True)
    bench.resume("resume", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.stands(0, epoch=0, broken=True)
    bench.pause("again", 0, soft=True)
    for engine in (0, 1):
        bench.stands(engine, broken=False)
    bench.resume("resume again", 0)
    assert [o.rebuild for o in orders(bench)] == [False, False]


# ---- pause by hand


def test_a_pause_of_one_engine_pauses_its_group_and_only_it():
    bench = a_pair()
    paused = bench.pause("p", 1)
    assert pauses(paused) == [(0, False), (1, False)]
    assert bench.states(0, 1, 2, 3) == ["pausing", "pausing", "healthy", "healthy"]
    assert {e.event.command_id for e in paused if isinstance(e, Publish)} == {"p"}


def test_a_pause_without_a_name_pauses_everybody():
    bench = a_pair()
    assert [engine for engine, _ in pauses(bench.pause())] == [0, 1, 2, 3]


def test_a_pause_ends_when_every_engine_of_every_group_stands():
    bench = a_pair()
    bench.pause("p")
    for engine in (0, 2, 3):
        bench.stands(engine)
    assert bench.all(Settle) == []
    bench.stands(1)
    assert bench.all(Settle) == [Settle("p")]
    assert all(bench.view(e).paused_by_hand for e in range(4))


def test_an_idle_instance_pauses_and_resumes_like_a_busy_one():
    bench = a_pair()
    bench.pause("p", soft=True)
    for engine in range(4):
        bench.stands(engine, broken=False)
    bench.resume("r")
    for engine in range(4):
        bench.recovered(engine)
    assert bench.all(Settle) == [Settle("p"), Settle("r")]
    assert bench.states(0, 1, 2, 3) == ["healthy"] * 4


def test_a_pause_while_somebody_of_the_group_is_unwell_is_a_conflict_and_changes_nothing():
    bench = a_pair()
    bench.faulted(0)
    before = bench.instance.view()
    for engines in ((1,), (2, 0), ()):
        with pytest.raises(InstructionConflict, match="cannot be paused now"):
            bench.pause("p", *engines)
    assert bench.instance.view() == before


def test_a_pause_of_what_is_already_paused_is_a_conflict_that_says_the_state():
    with pytest.raises(InstructionConflict, match="engine 0 is paused, it cannot be paused now") as caught:
        paused_by_hand().pause("again", 1)
    assert caught.value.state == "paused"


def test_an_engine_that_does_not_exist_cannot_be_paused():
    bench = a_pair()
    with pytest.raises(UnknownEngine, match="known: 0, 1, 2, 3"):
        bench.pause("p", 0, 9)
    assert bench.states(0) == ["healthy"]


def test_the_id_of_a_pause_under_way_is_refused_whatever_it_is_for():
    bench = a_pair()
    bench.pause("same", 0)
    for order in (lambda: bench.pause("same", 2), lambda: bench.resume("same", 0), lambda: bench.arm("same")):
        with pytest.raises(InstructionConflict, match="the id same is already under way"):
            order()


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_nothing_is_decided_over_a_pause_by_hand_however_long_it_lasts(config):
    bench = paused_by_hand(config)
    for _ in range(20):
        assert [e for e in bench.tick(config.engine_recovery_timeout_s) if not is_affirming(e)] == []
    assert bench.states(0, 1) == ["paused", "paused"]
    assert bench.view(0).reason == "paused by hand; goes on when told to resume"


def test_after_a_long_pause_by_hand_the_recovery_timeout_begins_anew():
    bench = paused_by_hand(EXTERNAL)
    bench.tick(1e6)
    bench.resume("resume", 0)
    bench.aborted(0)
    bench.aborted(1)
    assert [e for e in bench.tick(EXTERNAL.engine_recovery_timeout_s - 0.1) if not is_affirming(e)] == []
    assert kinds(bench.tick(0.1))[-1] == "End"


def test_broken_collectives_that_are_reported_during_a_pause_by_hand_are_no_fault():
    bench = a_pair()
    bench.pause("p", 0)
    assert bench.faulted(0, fault=a_fault(0, "broken", FaultClass.COMMUNICATOR)) == []
    assert bench.states(0, 1) == ["pausing", "pausing"]
    for engine in (0, 1):
        bench.held(engine, fault=LEFT_ALONE, broken=True)
    assert [(bench.view(e).fault, bench.view(e).faults) for e in (0, 1)] == [(None, 0)] * 2
    assert EventKind.FAULT_REPORTED not in {e.kind for e in bench.events}
    assert bench.faulted(1, fault=LEFT_ALONE) == []
    assert bench.all(Settle) == [Settle("p")]


def test_a_pause_by_hand_whose_engine_does_not_stand_is_not_said_to_have_a_fault():
    bench = a_pair()
    bench.pause("p", 0)
    bench.stands(0)
    bench.faulted(1, fault=LEFT_ALONE)
    bench.tick(AUTO.containment_timeout_s)
    assert bench.defeat == "engine 1 was told to pause and did not stand still within 30 s"
    assert bench.all(Settle) == [Settle("p", error=bench.defeat)]


def test_a_fault_during_a_pause_by_hand_is_reported_and_waits_for_the_hand():
    bench = a_pair()
    bench.pause("p", 0)
    bench.faulted(1)
    bench.stands(0)
    bench.held(1)
    assert bench.all(Settle) == [Settle("p")]
    assert orders(bench) == []
    assert bench.view(1).fault == a_fault(1)


def test_a_deep_fault_ends_even_a_pause_by_hand():
    bench = paused_by_hand()
    assert kinds(bench.faulted(1, fault=DEEP))[-1] == "End"


# ---- soft


def test_a_soft_pause_waits_for_a_step_boundary_and_then_becomes_a_hard_one():
    bench = a_pair()
    assert pauses(bench.pause("p", 0, soft=True)) == [(0, True), (1, True)]
    bench.stands(0, broken=False)
    assert pauses(bench.tick(SOFT_PAUSE_S - 0.1)) == []
    assert pauses(bench.tick(0.1)) == [(0, False), (1, False)]
    assert bench.tick(1.0) == []
    bench.stands(1)
    bench.resume("resume", 0)
    assert [o.rebuild for o in orders(bench)] == [True]


def test_a_soft_pause_that_came_to_a_stand_never_hardens():
    bench = paused_by_hand(soft=True)
    assert pauses(bench.tick(100.0)) == []


def test_before_a_soft_pause_has_hardened_a_broken_collective_is_a_fault():
    bench = a_pair()
    bench.pause("p", 0, soft=True)
    assert kinds(bench.faulted(1, fault=LEFT_ALONE)) == ["fault-reported"]


def test_once_a_soft_pause_has_hardened_a_broken_collective_is_none():
    bench = a_pair()
    bench.pause("p", 0, soft=True)
    bench.tick(SOFT_PAUSE_S)
    assert bench.faulted(1, fault=LEFT_ALONE) == []


# ---- resume and retry


def test_a_resume_lets_the_whole_group_go_on_and_is_no_retry():
    bench = paused_by_hand()
    for number in range(AUTO.max_retries + 2):
        bench.resume(f"resume-{number}", 1)
        bench.recovered(0)
        bench.recovered(1)
        bench.pause(f"pause-{number}", 0)
        bench.stands(0)
        bench.stands(1)
    assert [o.engine_ids for o in orders(bench)] == [(0, 1)] * (AUTO.max_retries + 2)
    assert bench.defeat is None


def test_a_resume_without_a_name_resumes_what_was_paused_by_hand_and_nothing_else():
    bench = paused_by_hand(EXTERNAL)
    bench.held(2)
    bench.resume("r")
    assert bench.states(0, 1, 2) == ["recovering", "recovering", "paused"]


def test_a_resume_of_what_runs_is_a_conflict():
    for engines in ((), (0,)):
        with pytest.raises(InstructionConflict, match="is healthy, there is nothing to resume"):
            a_pair().resume("r", *engines)


def test_a_resume_of_what_still_comes_to_a_stand_is_a_conflict():
    bench = a_pair()
    bench.pause("p", 0)
    bench.stands(0)
    with pytest.raises(InstructionConflict, match="engine 1 is pausing"):
        bench.resume("r", 0)


def test_a_resume_after_a_fault_is_a_conflict_that_names_retry():
    with pytest.raises(InstructionConflict, match="retry lets it go on"):
        paused_after_a_fault().resume("r", 1)


def test_a_retry_lets_go_on_what_was_paused_by_hand():
    bench = paused_by_hand()
    bench.retry("retry", 0)
    assert bench.view(0).paused_by_hand is False
    bench.recovered(0)
    assert bench.recovered(1)[-1] == Settle("retry")


def test_a_retry_of_one_engine_is_a_retry_of_its_group():
    bench = paused_after_a_fault()
    bench.retry("cmd", 1)
    assert orders(bench) == [OrderRecovery((0, 1), "cmd", 1, rebuild=True)]


def test_a_retry_before_the_peer_stands_is_a_conflict_that_names_the_peer():
    bench = a_pair(EXTERNAL)
    bench.faulted(0)
    bench.held(0)
    with pytest.raises(InstructionConflict, match="engine 1 is pausing, there is nothing to retry") as caught:
        bench.retry("cmd", 0)
    assert caught.value.state == "pausing"


def test_a_retry_while_one_side_still_recovers_is_a_conflict():
    bench = recovering(EXTERNAL)
    bench.aborted(0)
    with pytest.raises(InstructionConflict, match="command cmd is already under way"):
        bench.retry("again", 0)


def test_a_pause_by_hand_whose_resume_fails_goes_the_way_of_every_fault():
    bench = paused_by_hand()
    bench.resume("r", 0)
    bench.aborted(0)
    assert bench.aborted(1)[2] == Settle("r", error=a_fault(0, "again").summary())
    assert [o.epoch for o in orders(bench)] == [1, 2]


# ---- over several groups


def both_pairs_paused(config=EXTERNAL):
    bench = two_pairs(config)
    for engine in (0, 2):
        bench.held(engine)
        bench.stands(engine + 1)
    return bench


def test_a_retry_of_several_groups_settles_once_when_the_last_is_done():
    bench = both_pairs_paused()
    bench.did(bench.instance.retry("all", (), bench.now))
    assert [(o.engine_ids, o.command_id) for o in orders(bench)] == [((0, 1), "all"), ((2, 3), "all")]
    for engine in (0, 3, 1):
        bench.recovered(engine)
    assert bench.all(Settle) == []
    bench.recovered(2)
    assert bench.all(Settle) == [Settle("all")]


def test_a_retry_that_fails_on_one_of_several_groups_says_so_when_the_last_is_done():
    bench = both_pairs_paused()
    bench.retry("all", None)
    bench.aborted(0)
    bench.aborted(1)
    assert bench.all(Settle) == []
    bench.recovered(2)
    bench.recovered(3)
    assert bench.all(Settle) == [Settle("all", error=a_fault(0, "again").summary())]
    assert bench.states(0, 1, 2, 3) == ["paused", "paused", "healthy", "healthy"]


def test_a_pause_over_several_groups_settles_once_although_one_was_resumed_meanwhile():
    bench = two_pairs()
    bench.pause("p")
    bench.stands(0)
    bench.stands(1)
    bench.resume("r", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.stands(2)
    bench.stands(3)
    assert bench.all(Settle) == [Settle("r"), Settle("p")]


def test_of_several_groups_none_is_touched_when_one_cannot_follow():
    bench = two_pairs(EXTERNAL)
    bench.held(0)
    bench.stands(1)
    before = bench.instance.view()
    with pytest.raises(InstructionConflict, match="engine 2 is healthy"):
        bench.did(bench.instance.retry("some", (0, 2), bench.now))
    assert bench.instance.view() == before


def test_each_group_has_an_epoch_and_retries_of_its_own():
    bench = two_pairs()
    for _ in range(2):
        bench.held(0)
        bench.stands(1)
        bench.recovered(0)
        bench.recovered(1)
    bench.held(3)
    decided = bench.stands(2)
    assert [bench.view(e).epoch for e in range(4)] == [2, 2, 1, 1]
    assert "retry 1 of 3" in next(e.event.reason for e in decided if isinstance(e, Publish) and e.event.reason)


def test_the_end_settles_commands_over_several_groups_once():
    bench = both_pairs_paused()
    bench.retry("all", None)
    bench.recovered(0)
    bench.lost(2)
    assert bench.all(Settle) == [Settle("all", error="engine core 2 is gone: killed by signal 9")]


# ---- what cannot be rebuilt


def an_unrebuildable_pair(config=AUTO):
    bench = a_pair(config, attached=False)
    for engine in range(4):
        bench.attached(engine, unrebuildable=CANNOT if engine == 1 else ())
    return bench


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_group_whose_broken_collectives_cannot_be_rebuilt_ends_and_says_what_cannot(config):
    bench = an_unrebuildable_pair(config)
    bench.faulted(0)
    bench.held(0, broken=True)
    assert isinstance(bench.stands(1)[-1], End)
    assert "cannot be rebuilt in place here (custom all-reduce)" in bench.defeat
    assert "boom" in bench.defeat


def test_what_one_engine_cannot_rebuild_is_shown_with_it():
    assert [an_unrebuildable_pair().view(e).unrebuildable for e in (0, 1)] == [(), CANNOT]


@pytest.mark.parametrize("soft", [True, False])
def test_nobody_pauses_by_hand_a_group_that_could_not_go_on(soft):
    bench = an_unrebuildable_pair()
    with pytest.raises(InstructionConflict, match="could not go on after a pause"):
        bench.pause("p", 0, soft=soft)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_an_engine_of_several_ranks_that_could_not_be_rebuilt_is_paused_softly_or_not_at_all():
    bench = Bench(groups=[(0,)], attached=False)
    bench.attached(0, ranks=2, unrebuildable=CANNOT)
    with pytest.raises(InstructionConflict, match="a soft pause breaks nothing"):
        bench.pause("p", 0)
    bench.pause("p", 0, soft=True)
    assert pauses(bench.tick(SOFT_PAUSE_S)) == []  # it must not harden
    bench.stands(0, broken=False)
    bench.resume("r", 0)
    assert [o.rebuild for o in orders(bench)] == [False]


def test_an_engine_of_one_rank_has_nobody_whom_a_pause_could_break():
    bench = Bench(groups=[(0,)], attached=False)
    bench.attached(0, unrebuildable=CANNOT)
    bench.pause("p", 0)
    bench.stands(0, broken=False)
    assert bench.all(Settle) == [Settle("p")]


# ---- somebody still lives


def test_engines_that_stand_are_told_so_again_and_again_and_nobody_else_is():
    bench = paused_by_hand()
    for _ in range(3):
        affirmed = bench.tick(AFFIRM_S)
        assert [e.engine_id for e in affirmed if is_affirming(e)] == [0, 1]
    assert bench.tick(AFFIRM_S / 2) == []


def test_an_affirmation_is_void_in_another_epoch():
    bench = paused_by_hand()
    bench.resume("r", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.pause("p", 0)
    bench.stands(0)
    bench.stands(1)
    assert [e.message.epoch for e in bench.tick(AFFIRM_S)] == [1, 1]


def test_who_stands_is_affirmed_while_the_peer_is_still_on_its_way():
    bench = a_pair()
    bench.faulted(0)
    bench.held(0)
    assert [e.engine_id for e in bench.tick(AFFIRM_S) if is_affirming(e)] == [0]


def test_affirming_is_no_event():
    bench = paused_by_hand()
    before = bench.instance.view()
    bench.tick(AFFIRM_S)
    assert bench.instance.view() == before


# ---- any story

ENGINES = st.integers(0, 5)
FAULTS = st.sampled_from([FaultClass.TRANSIENT] * 16 + [FaultClass.COMMUNICATOR] * 8 + [FaultClass.UNRESPONSIVE])
# 0: of the present epoch; else of another one.
OFFSETS = st.sampled_from([0] * 10 + [-1, 1])
HAPPENINGS = st.one_of(
    st.tuples(st.just("faulted"), ENGINES, OFFSETS, FAULTS),
    st.tuples(st.just("held"), ENGINES, OFFSETS, FAULTS),
    st.tuples(st.just("stands"), ENGINES, OFFSETS, st.booleans()),
    st.tuples(st.just("stands"), ENGINES, st.just(0), st.booleans()),
    st.tuples(st.sampled_from(["recovered", "recovered", "aborted"]), ENGINES, OFFSETS, st.none()),
    st.tuples(st.sampled_from(["retry", "pause", "soft pause", "resume"]), st.none() | ENGINES, st.none(), st.none()),
    st.tuples(
        st.sampled_from(["stands", "stands", "stands", "recovered", "aborted"]).map("group {}".format),
        ENGINES,
        st.none(),
        st.none(),
    ),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 0.1, 1.0, 1.0, 5.0, 29.0]), st.none(), st.none()),
    st.tuples(st.just("arm"), ENGINES, st.none(), st.none()),
)
GROUPS = [(0, 1), (2, 3, 4), (5,)]
REPORTS = ("faulted", "held", "stands", "recovered", "aborted")
STANDING = {EngineState.FAULTED, EngineState.PAUSING, EngineState.PAUSED}


class Story:
    """Tells an instance what happens and checks after each happening what must always hold."""

    def __init__(self, config):
        self.bench = Bench(config, groups=GROUPS)
        self.accepted = []
        self.epochs = dict.fromkeys(GROUPS, 0)

    def tell(self, number, happening):
        before, seen = self.bench.instance.view(), len(self.bench.effects)
        try:
            self._happens(f"cmd-{number}", *happening)
        except InstructionConflict:
            assert self.bench.instance.view() == before
        self._check(before, self.bench.effects[seen:])
        if happening[0] in REPORTS and self._is_stale(before, *happening[1:3]):
            assert self.bench.instance.view() == before

    def _is_stale(self, view, engine, offset):
        epoch = view.engine(engine).epoch
        return max(0, epoch + offset) != epoch

    def _happens(self, command_id, what, engine, offset, about):
        bench = self.bench
        match what:
            case "faulted" | "held":
                epoch = max(0, bench.view(engine).epoch + offset)
                getattr(bench, what)(engine, epoch=epoch, fault=a_fault(engine, fault_class=about))
            case "stands":
                bench.stands(engine, epoch=max(0, bench.view(engine).epoch + offset), broken=about)
            case "recovered" | "aborted":
                getattr(bench, what)(engine, epoch=max(0, bench.view(engine).epoch + offset))
            case "group stands" | "group recovered" | "group aborted":
                for each in (engine, *bench.view(engine).lockstep_with):
                    getattr(bench, what.removeprefix("group "))(each)
            case "tick":
                bench.tick(engine)
            case _:
                self._order(command_id, what, engine)
                self.accepted.append(command_id)

    def _order(self, command_id, what, engine):
        engines = () if engine is None else (engine,)
        match what:
            case "retry":
                self.bench.retry(command_id, engine)
            case "resume":
                self.bench.resume(command_id, *engines)
            case "arm":
                self.bench.arm(command_id, InjectionSpec(phase=SPEC.phase, engine_id=engine))
            case _:
                self.bench.pause(command_id, *engines, soft=what == "soft pause")

    def _check(self, view, effects):
        for effect in effects:
            match effect:
                case Publish():
                    view = effect.view
                case OrderRecovery(engine_ids=group, epoch=epoch):
                    assert group in GROUPS, "a group recovers whole"
                    assert {view.engine(e).state for e in group} == {EngineState.PAUSED}, "only who stands recovers"
                    assert epoch == self.epochs[group] + 1, "an epoch is used once"
                    self.epochs[group] = epoch
                case Send(engine_id, m.PauseEngine(epoch=epoch)):
                    assert epoch == next(self.epochs[g] for g in GROUPS if engine_id in g), "no pause is void"
        for group in GROUPS:
            assert {self.bench.view(e).epoch for e in group} == {self.epochs[group]}
            states = {self.bench.view(e).state for e in group}
            assert not (states & STANDING and EngineState.HEALTHY in states), "nobody runs on beside one that stands"

    def wait(self):
        """Nothing more happens: every wait ends."""
        for _ in range(40):
            self.bench.tick(10.0)

    def is_over(self, group):
        views = [self.bench.view(e) for e in group]
        healthy = all(v.state is EngineState.HEALTHY for v in views)
        by_hand = all(v.state is EngineState.PAUSED and v.paused_by_hand for v in views)
        return healthy or by_hand or self.bench.defeat is not None


@settings(max_examples=60, deadline=None)
@given(told=st.lists(HAPPENINGS, min_size=12, max_size=30), config=st.sampled_from([AUTO, EXTERNAL]))
def test_whatever_happens_a_group_stands_and_goes_on_as_one_and_every_story_ends(told, config):
    story = Story(config)
    for number, happening in enumerate(told):
        story.tell(number, happening)
    story.wait()
    bench = story.bench
    own = {o.command_id for o in orders(bench)} - set(story.accepted)
    assert sorted(s.command_id for s in bench.all(Settle)) == sorted([*story.accepted, *own]), "each is settled once"
    assert all(story.is_over(group) for group in GROUPS)
    assert len(bench.all(End)) == (bench.defeat is not None)
    assert [e.sequence for e in bench.events] == list(range(1, len(bench.events) + 1))
