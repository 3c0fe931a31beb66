"""Lockstep groups: engines that share collectives pause together, recover under one epoch, go on together."""

import pytest
from msgspec import UNSET

from holdfast.core.protocol.effects import BeginRecovery, CloseRendezvous, End, Settle
from holdfast.core.protocol.events import EventKind
from support.groups_bench import a_pair, orders, paused_after_a_fault, paused_by_operator, pauses, recovering, two_pairs
from support.instance_bench import AUTO, EXTERNAL, NO_RESTARTS, Bench, a_fault, kinds

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
    for happens in (bench.faulted, bench.paused_by_fault):
        happens(0)
        assert [bench.view(e) for e in (2, 3)] == before
    bench.paused(1)
    bench.aborted(0)
    bench.aborted(1)
    assert [bench.view(e) for e in (2, 3)] == before
    assert bench.instance.view().ready


def test_the_event_says_why_a_peer_is_paused():
    bench = a_pair()
    bench.faulted(1)
    ordered = bench.events[-1]
    assert (ordered.kind, ordered.engine_id) == (EventKind.PAUSE_ORDERED, 0)
    assert ordered.reason == "engine 1 of the same lockstep group has stopped"


def test_a_peer_that_was_told_to_pause_has_no_fault():
    bench = paused_after_a_fault()
    assert (bench.view(1).fault_info, bench.view(1).faults) == (UNSET, 0)
    assert (bench.view(0).fault_info, bench.view(0).faults) == (a_fault(0).summary(), 1)


def test_an_engine_that_stands_still_without_a_word_before_pauses_its_peer_too():
    bench = a_pair()
    assert pauses(bench.paused_by_fault(1)) == [(0, False)]


def test_an_engine_that_attaches_while_its_peer_stands_is_paused_at_once():
    bench = a_pair(attached=False)
    bench.attached(0)
    bench.faulted(0)
    bench.paused_by_fault(0)
    assert bench.states(0, 1) == ["paused", "starting"]
    assert pauses(bench.attached(1)) == [(1, False)]


def test_a_bigger_group_pauses_whole():
    bench = Bench(groups=[(0, 1, 2, 3)])
    assert pauses(bench.faulted(2)) == [(0, False), (1, False), (3, False)]


# ---- a decision once all stand still


def test_nothing_is_decided_before_everybody_stands_still():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.paused_by_fault(0)) == ["engine-paused"]
    assert kinds(bench.paused(1)) == [
        "engine-paused",
        "decision-made",
        "BeginRecovery",
        "recovery-started",
        "recovery-started",
    ]


def test_it_does_not_matter_who_stands_first():
    bench = a_pair()
    bench.faulted(0)
    assert kinds(bench.paused(1)) == ["engine-paused"]
    assert kinds(bench.paused_by_fault(0))[1:3] == ["decision-made", "BeginRecovery"]


def test_the_whole_group_recovers_under_one_epoch_and_rebuilds_what_was_broken():
    bench = recovering()
    assert orders(bench) == [BeginRecovery((0, 1), "own-2", 1, rebuild=True)]
    assert [bench.view(e).epoch for e in range(4)] == [1, 1, 0, 0]


def test_the_decision_is_told_of_the_engine_with_the_root_cause():
    bench = a_pair()
    bench.faulted(1)
    bench.paused_by_fault(1)
    bench.paused(0)
    decided = next(e for e in bench.events if e.kind is EventKind.DECISION_MADE)
    assert decided.engine_id == 1
    assert "collectives are rebuilt" in decided.reason


def test_the_command_ends_once_both_have_recovered():
    bench = recovering()
    assert kinds(bench.recovered(1)) == ["engine-recovered"]
    assert kinds(bench.recovered(0)) == ["engine-recovered", "Settle"]
    assert bench.states(0, 1) == ["healthy", "healthy"]
    assert [bench.view(e).fault_info for e in (0, 1)] == [UNSET, UNSET]


def test_the_interruption_of_each_engine_counts_from_the_first_fault_of_the_group():
    bench = a_pair()
    bench.faulted(0)
    bench.now += 2.0
    bench.paused_by_fault(0)
    bench.paused(1)
    bench.now += 1.0
    bench.recovered(1)
    bench.now += 1.0
    bench.recovered(0)
    assert {e.engine_id: e.interruption_s for e in bench.events if e.interruption_s} == {1: 3.0, 0: 4.0}


def test_a_recovery_of_the_group_is_one_retry_and_not_one_for_each_engine():
    bench = a_pair(NO_RESTARTS)
    for _ in range(AUTO.max_retries):
        bench.faulted(0)
        bench.paused_by_fault(0)
        bench.paused(1)
        bench.recovered(0)
        bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]
    bench.faulted(0)
    bench.paused_by_fault(0)
    assert kinds(bench.paused(1))[-1] == "End"


def test_a_group_that_came_softly_to_a_stand_has_nothing_to_rebuild():
    bench = paused_by_operator(soft=True)
    bench.resume("resume", 0)
    assert [o.rebuild for o in orders(bench)] == [False]


def test_a_single_rank_has_nothing_to_rebuild_even_after_a_hard_pause():
    bench = a_pair()
    bench.pause("pause", 2)
    bench.paused(2, broken=False)
    bench.resume("resume", 2)
    assert orders(bench) == [BeginRecovery((2,), "resume", 1, rebuild=False)]


# ---- both or neither


def test_a_recovery_that_fails_on_one_side_closes_the_rendezvous_where_the_other_waits():
    bench = recovering(EXTERNAL)
    assert kinds(bench.aborted(0)) == ["recovery-failed", "CloseRendezvous"]
    assert bench.all(CloseRendezvous) == [CloseRendezvous((0, 1), 1)]
    assert bench.states(0, 1) == ["paused", "recovering"]


def test_without_a_rendezvous_there_is_none_to_close():
    bench = paused_by_operator(soft=True)
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
        bench.paused(engine) if engine else bench.paused_by_fault(0)
    bench.retry("cmd", 0)
    bench.aborted(1)
    assert pauses(bench.recovered(0)) == [(0, False)]
    assert bench.states(0, 1, 2) == ["pausing", "paused", "recovering"]
    assert bench.all(Settle) == []


def test_both_are_tried_again_under_the_next_epoch_once_both_stand_again():
    bench = recovering()
    bench.recovered(0)
    bench.aborted(1)
    assert kinds(bench.paused(0))[:3] == ["engine-paused", "decision-made", "BeginRecovery"]
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
    bench = recovering(NO_RESTARTS)
    for _ in range(AUTO.max_retries):
        bench.aborted(0)
        bench.aborted(1)
        bench.tick(after_s=1.0)
    assert "3 retries within 60 s did not last" in bench.defeat
    assert len(orders(bench)) == AUTO.max_retries
    assert len(bench.all(End)) == 1
