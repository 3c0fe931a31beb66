"""Decisions are pure and say why."""

from math import inf

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.decisions import Action, recent
from holdfast.core.engine_policy import decide_replacement
from holdfast.core.faults import Fault, FaultClass, is_of_the_process
from holdfast.core.policy import Incident, decide_repair, decide_wait
from holdfast.core.ranks_out import RanksOut, ranks_allowed_out

AUTO = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_engine_restarts=0)
NO_RESTARTS = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_worker_restarts=0, max_engine_restarts=0)
EXTERNAL = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=120.0)


OF_THE_PROCESS = [
    (FaultClass.DEVICE, "the device error is sticky"),
    (FaultClass.WORKER_LOST, "a worker process is gone"),
    (FaultClass.UNRESPONSIVE, "a rank did not answer in time"),
]


def fault(fault_class=FaultClass.TRANSIENT, rank=0):
    return Fault(fault_class=fault_class, error_type="RuntimeError", message="boom", engine_id=1, rank=rank)


def incident(*times, retried_at=(), fault_class=FaultClass.TRANSIENT, began_at=0.0, rank=0, **about):
    return Incident(fault=fault(fault_class, rank), began_at=began_at, retried_at=times or retried_at, **about)


def sick(fault_class=FaultClass.WORKER_LOST, **about):
    return incident(fault_class=fault_class, wants_restart=True, **about)


def nothing_wrong(**about):
    return Incident(fault=None, began_at=0.0, **about)


def test_an_exception_with_state_intact_is_retried():
    decision = decide_repair(0.0, incident(), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason == "exception with state intact; retry 1 of 3"


def test_the_reason_counts_the_retries_within_the_window():
    assert decide_repair(10.0, incident(1.0, 2.0), AUTO).reason.endswith("retry 3 of 3")


def test_more_retries_than_allowed_within_the_window_end_the_instance_where_no_rank_is_to_blame():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0, rank=None), AUTO)
    assert decision.action is Action.END
    assert "3 retries within 60 s did not last (--max-retries 3)" in decision.reason
    assert "RuntimeError in engine 1: boom" in decision.reason


def test_more_retries_than_allowed_of_one_rank_s_fault_give_that_rank_a_new_process():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "3 retries within 60 s did not last (--max-retries 3)" in decision.reason
    assert "RuntimeError in engine 1, rank 0: boom; its rank gets a new process" in decision.reason


def test_more_retries_than_allowed_end_the_instance_where_workers_are_not_restarted():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0), NO_RESTARTS)
    assert decision.action is Action.END
    assert "3 retries within 60 s did not last" in decision.reason


def test_retries_older_than_the_window_are_forgiven():
    assert decide_repair(61.5, incident(1.0, 2.0, 3.0), AUTO).action is Action.RETRY


@pytest.mark.parametrize(("now", "kept"), [(60.0, (0.5, 1.0)), (60.5, (1.0,)), (61.0, ()), (0.0, (0.5, 1.0))])
def test_a_retry_leaves_the_window_exactly_when_it_is_as_old_as_the_window_is_long(now, kept):
    assert recent((0.5, 1.0), now, 60.0) == kept


def test_a_fault_that_brings_the_search_for_a_guilty_request_on_is_no_further_try():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0, narrows=True), AUTO)
    assert decision.action is Action.RETRY
    assert "not counted as a try" in decision.reason
    tried = (1.0,) * AUTO.max_worker_restarts
    decision = decide_repair(10.0, sick(narrows=True, restarted_at=tried), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "not counted as a try" in decision.reason


def test_where_workers_are_not_restarted_a_search_restarts_none_either():
    assert decide_repair(10.0, sick(narrows=True), NO_RESTARTS).action is Action.END


@pytest.mark.parametrize(("restarts", "action"), [(0, Action.END), (1, Action.RESTART_WORKERS)])
def test_no_retries_allowed_means_the_first_fault_goes_to_the_next_rung(restarts, action):
    config = HoldfastConfig(max_retries=0, max_worker_restarts=restarts, max_engine_restarts=0)
    assert decide_repair(0.0, incident(), config).action is action


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_silence_of_nobody_knows_whom_ends_at_once_whoever_decides(config):
    silent = incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, wants_restart=True)
    decision = decide_repair(0.0, silent, config)
    assert decision.action is Action.END
    assert decision.reason.startswith("a rank did not answer in time and it is not known which")
    assert "boom" in decision.reason


def test_every_fault_class_has_a_decision():
    actions = {
        c: decide_repair(0.0, incident(fault_class=c, wants_restart=is_of_the_process(fault(c))), AUTO).action
        for c in FaultClass
    }
    assert {c for c, a in actions.items() if a is Action.RETRY} == {
        FaultClass.COMMUNICATOR,
        FaultClass.TRANSIENT,
        FaultClass.NUMERICAL,
        FaultClass.UNKNOWN,
    }
    assert {a for c, a in actions.items() if is_of_the_process(fault(c))} == {Action.RESTART_WORKERS}


# ---- one incident


def test_tries_of_an_incident_that_is_still_open_are_not_forgiven_however_long_they_take():
    for about in ({}, {"unknown_retried_at": (1.0,), "fault_class": FaultClass.UNKNOWN}):
        long_ago = incident(1.0, 2.0, 3.0, rank=None, **about)
        assert decide_repair(500.0, long_ago, AUTO).action is Action.RETRY
        assert decide_repair(500.0, msgspec.structs.replace(long_ago, opened_at=1.0), AUTO).action is Action.END
    restarted = sick(restarted_at=(1.0,) * 20)
    assert decide_repair(5000.0, restarted, AUTO).action is Action.RESTART_WORKERS
    assert decide_repair(5000.0, msgspec.structs.replace(restarted, opened_at=1.0), AUTO).action is Action.END


@pytest.mark.parametrize("config", [HoldfastConfig(max_retries=0), EXTERNAL])
def test_a_newcomer_is_let_in_without_a_try_of_anything_whoever_decides(config):
    for fault_class in (None, FaultClass.COMMUNICATOR):
        found = nothing_wrong(joins=True) if fault_class is None else incident(fault_class=fault_class, joins=True)
        decision = decide_repair(0.0, found, config)
        assert (decision.action, decision.limit) == (Action.RETRY, 0)
        assert "is let in" in decision.reason


# ---- what no row of the table names


def unknown(*unknown_retried_at, **about):
    return incident(*unknown_retried_at, fault_class=FaultClass.UNKNOWN, unknown_retried_at=unknown_retried_at, **about)


def test_an_unknown_error_is_retried_once():
    decision = decide_repair(0.0, unknown(), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason.startswith("an error that no row of the table names")


@pytest.mark.parametrize(("rank", "config", "action"), [(0, AUTO, Action.RESTART_WORKERS), (None, AUTO, Action.END)])
def test_of_two_unknown_errors_within_the_window_the_second_goes_one_rung_up(rank, config, action):
    decision = decide_repair(59.0, unknown(0.0, rank=rank), config)
    assert decision.action is action
    assert decision.reason.startswith("an unknown error was retried within 60 s already, and here is one again")
    assert decide_repair(60.0, unknown(0.0, rank=rank), config).action is Action.RETRY


def test_an_unknown_error_after_retries_for_errors_that_are_known_is_the_first_of_its_kind():
    after_others = incident(1.0, 2.0, fault_class=FaultClass.UNKNOWN)
    assert decide_repair(3.0, after_others, AUTO).action is Action.RETRY


def test_a_known_error_after_an_unknown_one_is_retried_as_ever():
    assert decide_repair(3.0, incident(1.0, unknown_retried_at=(1.0,)), AUTO).action is Action.RETRY


def test_a_step_that_computed_what_is_no_number_is_repeated_and_says_so():
    decision = decide_repair(0.0, incident(fault_class=FaultClass.NUMERICAL), AUTO)
    assert decision.action is Action.RETRY
    assert "its KV is suspect" in decision.reason


# ---- worker restarts


@pytest.mark.parametrize(("fault_class", "why"), OF_THE_PROCESS)
def test_what_a_retry_cannot_repair_gives_the_rank_a_new_process(fault_class, why):
    decision = decide_repair(0.0, sick(fault_class), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert why in decision.reason
    assert decision.reason.endswith("boom; its rank gets a new process; worker restart 1 of 20")


@pytest.mark.parametrize(("fault_class", "why"), OF_THE_PROCESS)
def test_what_a_retry_cannot_repair_ends_at_once_where_workers_are_not_restarted(fault_class, why):
    decision = decide_repair(0.0, sick(fault_class), NO_RESTARTS)
    assert decision.action is Action.END
    assert why in decision.reason
    assert "boom; workers are not restarted here (--max-worker-restarts 0)" in decision.reason
    assert decision.reason.endswith("; engine cores are not restarted here (--max-engine-restarts 0)")


def test_external_a_restart_too_waits_for_an_instruction():
    decision = decide_repair(30.0, sick(began_at=10.0), EXTERNAL)
    assert (decision.action, decision.reason) == (Action.AWAIT, "waiting up to 100 s for an instruction")


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_restart_that_was_asked_for_is_done_whoever_decides_and_says_so(config):
    decision = decide_repair(0.0, nothing_wrong(asked=True, wants_restart=True), config)
    assert decision.action is Action.RESTART_WORKERS
    assert decision.reason == "asked for; only the named ranks get a new process"


def test_a_restart_that_was_asked_for_does_not_depend_on_how_many_there_were():
    asked = nothing_wrong(asked=True, wants_restart=True, restarted_at=(0.0,) * 20)
    for config in (AUTO, NO_RESTARTS):
        assert decide_repair(1.0, asked, config).action is Action.RESTART_WORKERS


def test_more_restarts_than_allowed_within_the_window_end_the_instance():
    config = HoldfastConfig(max_worker_restarts=2, worker_restart_window_s=100.0, max_engine_restarts=0)
    decision = decide_repair(99.0, sick(restarted_at=(0.0, 50.0)), config)
    assert decision.action is Action.END
    assert "2 worker restarts within 100 s did not last (--max-worker-restarts 2)" in decision.reason
    forgiven = decide_repair(100.0, sick(restarted_at=(0.0, 50.0)), config)
    assert forgiven.reason.endswith("worker restart 2 of 2")


@pytest.mark.parametrize("failed", [0, 1])
def test_the_first_restart_and_the_one_after_its_failure_are_at_once(failed):
    tried_at = (100.0,) * failed
    assert decide_repair(100.0, sick(failed_restarts=failed, restarted_at=tried_at), AUTO).again_at is None


@pytest.mark.parametrize(("failed", "pause_s"), [(2, 1.0), (3, 2.0), (4, 4.0), (6, 16.0), (7, 30.0), (12, 30.0)])
def test_restarts_that_fail_again_and_again_are_tried_with_growing_pauses_up_to_a_bound(failed, pause_s):
    again = sick(failed_restarts=failed, restarted_at=(50.0, 100.0))
    early = decide_repair(100.0, again, AUTO)
    assert (early.action, early.again_at) == (Action.AWAIT, 100.0 + pause_s)
    assert f"the restart failed {failed} times, tried again in {pause_s:.1f} s" in early.reason
    assert decide_repair(100.0 + pause_s, again, AUTO).action is Action.RESTART_WORKERS


def test_a_rank_that_is_sick_beside_a_fault_of_another_kind_gets_a_new_process_too():
    decision = decide_repair(0.0, incident(wants_restart=True), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert decision.reason.startswith("a rank's process is not to be trusted any more")


def test_broken_collectives_that_cannot_be_rebuilt_end_at_once_although_a_rank_could_be_restarted():
    for about in ({}, {"asked": True}):
        lost = sick(broken=True, unrebuildable=("custom all-reduce",), **about)
        assert decide_repair(0.0, lost, AUTO).action is Action.END


# ---- engine core restarts

CLIMBING = HoldfastConfig(max_retries=3, max_worker_restarts=1, max_engine_restarts=2, engine_restart_window_s=100.0)
CLIMBS = [
    (incident(1.0, 2.0, 3.0, rank=None), "3 retries within 60 s did not last"),
    (sick(restarted_at=(0.0,)), "1 worker restarts within 600 s did not last"),
    (incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, wants_restart=True), "a rank did not answer in time"),
    (incident(broken=True, unrebuildable=("custom all-reduce",)), "broken collectives cannot be rebuilt in place"),
]


@pytest.mark.parametrize(("found", "why"), CLIMBS)
def test_what_no_smaller_repair_helped_against_gets_another_engine_core(found, why):
    decision = decide_repair(5.0, found, CLIMBING)
    assert decision.action is Action.RESTART_ENGINE
    assert why in decision.reason
    assert decision.reason.endswith("another engine core takes its place; engine core restart 1 of 2")


@pytest.mark.parametrize(("found", "why"), CLIMBS)
def test_more_engine_core_restarts_than_allowed_end_the_instance(found, why):
    decision = decide_repair(5.0, msgspec.structs.replace(found, engine_restarted_at=(1.0, 2.0)), CLIMBING)
    assert decision.action is Action.END
    assert why in decision.reason
    assert decision.reason.endswith("2 engine core restarts within 100 s did not last (--max-engine-restarts 2)")


def test_nobody_is_started_to_join_a_lockstep_group_that_cannot_rebuild_its_collectives():
    stuck = incident(broken=True, unrebuildable=("custom all-reduce",))
    assert decide_repair(5.0, msgspec.structs.replace(stuck, in_lockstep=True), CLIMBING).action is Action.END


def test_restarts_of_long_ago_do_not_count():
    config = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)
    tired = incident(rank=None, engine_restarted_at=(1.0, 2.0, 3.0), retried_at=(200.0,) * 10)
    decision = decide_repair(200.0, tired, config)
    assert (decision.action, decision.tries) == (Action.RESTART_ENGINE, 1)
    still_open = msgspec.structs.replace(tired, opened_at=2.0)
    assert decide_repair(200.0, still_open, config).tries == 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [(EXTERNAL, "unasked"), (HoldfastConfig(max_engine_restarts=0), "--max-engine-restarts 0")],
)
def test_an_engine_core_that_is_not_replaced_says_why(config, reason):
    plan = decide_replacement((), config)
    assert not plan.is_possible
    assert reason in plan.reason


# ---- external


def test_external_waits_for_an_instruction_and_says_how_long():
    decision = decide_repair(30.0, incident(began_at=10.0), EXTERNAL)
    assert (decision.action, decision.reason) == (Action.AWAIT, "waiting up to 100 s for an instruction")


@pytest.mark.parametrize(("now", "action"), [(129.9, Action.AWAIT), (130.0, Action.END), (1e9, Action.END)])
def test_waiting_ends_at_the_recovery_timeout(now, action):
    assert decide_wait(now, incident(began_at=10.0), EXTERNAL).action is action


def test_external_does_not_count_retries_that_somebody_ordered():
    assert decide_repair(20.0, incident(*range(19), began_at=10.0), EXTERNAL).action is Action.AWAIT


# ---- broken collectives


def test_broken_collectives_are_rebuilt_and_the_reason_says_so():
    decision = decide_repair(0.0, incident(broken=True), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason == "exception with state intact; its collectives are rebuilt; retry 1 of 3"


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_broken_collectives_that_cannot_be_rebuilt_end_at_once_whoever_decides_and_say_what(config):
    decision = decide_repair(0.0, incident(broken=True, unrebuildable=("custom all-reduce",) * 2), config)
    assert decision.action is Action.END
    assert "cannot be rebuilt in place here (custom all-reduce)" in decision.reason
    assert "boom" in decision.reason


def test_what_cannot_be_rebuilt_does_not_matter_while_nothing_is_broken():
    assert decide_repair(0.0, incident(unrebuildable=("custom all-reduce",)), AUTO).action is Action.RETRY


# ---- paused by hand


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
@pytest.mark.parametrize("paused", [nothing_wrong(paused_by_hand=True), incident(paused_by_hand=True)])
def test_what_was_paused_by_hand_waits_for_a_hand_however_long_that_takes(config, paused):
    for decide in (decide_repair, decide_wait):
        decision = decide(1e9, paused, config)
        assert (decision.action, decision.reason) == (Action.AWAIT, "paused by hand; goes on when told to resume")


def test_a_worker_that_is_lost_while_paused_by_hand_waits_for_the_hand_too():
    lost = sick(paused_by_hand=True)
    assert decide_repair(0.0, lost, AUTO).action is Action.AWAIT


def test_even_by_hand_a_pause_does_not_outlast_what_no_process_can_be_replaced_for():
    silent = incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, wants_restart=True, paused_by_hand=True)
    assert decide_repair(0.0, silent, AUTO).action is Action.END


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_group_that_stands_still_for_no_reason_is_let_go_on(config):
    decision = decide_repair(0.0, nothing_wrong(), config)
    assert decision.action is Action.RETRY
    assert decision.reason.startswith("it stands still and nothing is wrong")


# ---- how many ranks may be out at once


def test_more_ranks_out_than_allowed_are_not_replaced_one_by_one():
    config = HoldfastConfig(max_ranks_out=1)
    two_of_four = RanksOut(now=2, elsewhere=0, own=4, total=4)
    decision = decide_repair(0.0, sick(out=two_of_four), config)
    assert decision.action is Action.RESTART_ENGINE
    assert "2 of 4 ranks would be out at once (--max-ranks-out 1); another engine core" in decision.reason
    assert decide_repair(0.0, sick(out=RanksOut(now=1, own=4, total=4)), config).action is Action.RESTART_WORKERS


def test_an_engine_core_is_not_replaced_where_too_many_ranks_are_out_elsewhere_already():
    config = HoldfastConfig(max_ranks_out="50%")
    elsewhere = RanksOut(now=3, elsewhere=2, own=1, total=4)
    decision = decide_repair(0.0, sick(out=elsewhere), config)
    assert decision.action is Action.END
    assert decision.reason.endswith("3 of 4 ranks would be out at once (--max-ranks-out 50%)")
    assert decide_replacement((), config, RanksOut(now=2, elsewhere=1, own=1, total=4)).is_possible


def test_the_only_engine_core_that_is_out_may_always_be_replaced():
    assert decide_replacement((), HoldfastConfig(max_ranks_out=0), RanksOut(now=4, own=4, total=4)).is_possible


@pytest.mark.parametrize(
    ("cap", "total", "allowed"), [(0, 4, 0), (3, 4, 3), ("25%", 8, 2), ("25%", 2, 1), ("12.5%", 8, 1), ("100%", 1, inf)]
)
def test_a_cap_is_a_number_of_ranks_or_a_share_of_all_that_allows_one_at_least(cap, total, allowed):
    assert ranks_allowed_out(cap, total) == allowed


def test_without_a_cap_all_ranks_may_be_out():
    assert decide_repair(0.0, sick(out=RanksOut(now=9, own=8, total=8)), AUTO).action is Action.RESTART_WORKERS


# ---- external, with a fallback

FALLBACK = HoldfastConfig(fault_policy="external", external_fallback="auto", engine_recovery_timeout_s=120.0)


@pytest.mark.parametrize(("found", "then"), [(incident(), Action.RETRY), (sick(), Action.RESTART_WORKERS)])
def test_after_the_timeout_the_ladder_is_climbed_where_a_fallback_says_so(found, then):
    for decide in (decide_repair, decide_wait):
        waiting = decide(119.0, found, FALLBACK)
        assert (waiting.action, waiting.reason) == (
            Action.AWAIT,
            "waiting up to 1 s for an instruction, then by itself",
        )
        decision = decide(120.0, found, FALLBACK)
        assert decision.action is then
        assert decision.reason.startswith(
            "no instruction repaired it within 120 s (--engine-recovery-timeout); by itself:"
        )


def test_the_ladder_of_a_fallback_ends_where_it_ends_by_itself():
    tired = incident(120.0, 120.1, 120.2, rank=None, engine_restarted_at=(1.0,))
    config = msgspec.structs.replace(FALLBACK, max_retries=3, max_engine_restarts=1)
    assert decide_repair(121.0, tired, config).action is Action.END


def test_with_a_fallback_what_is_gone_is_replaced_at_once_since_no_instruction_could_reach_it():
    assert decide_replacement((), FALLBACK).is_possible
    assert not decide_replacement((), EXTERNAL).is_possible


def test_with_a_fallback_a_pause_by_hand_still_has_no_end():
    by_hand = incident(paused_by_hand=True)
    assert decide_wait(1e6, by_hand, FALLBACK).action is Action.AWAIT


# ---- dry run

DRY = HoldfastConfig(fault_policy="dry-run", engine_recovery_timeout_s=120.0)


@pytest.mark.parametrize(("found", "would"), [(incident(), Action.RETRY), (sick(), Action.RESTART_WORKERS)])
def test_a_dry_run_says_what_it_would_do_and_waits(found, would):
    decision = decide_repair(0.0, found, DRY)
    assert (decision.action, decision.would) == (Action.AWAIT, would)
    assert decision.reason.startswith(f"dry run: would {would}: ")
    assert decision.reason.endswith("; waiting up to 120 s for an instruction")
    assert decide_repair(120.0, found, DRY).action is Action.END


def test_a_dry_run_repairs_nothing_that_is_gone():
    assert not decide_replacement((), DRY).is_possible
    silent = incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, wants_restart=True)
    decision = decide_repair(0.0, silent, DRY)
    assert (decision.action, decision.would) == (Action.END, Action.RESTART_ENGINE)


def test_in_a_dry_run_what_an_operator_does_is_done():
    asked = decide_repair(0.0, nothing_wrong(asked=True, wants_restart=True), DRY)
    assert (asked.action, asked.would) == (Action.RESTART_WORKERS, None)
    by_hand = decide_repair(0.0, incident(paused_by_hand=True), DRY)
    assert (by_hand.action, by_hand.would) == (Action.AWAIT, None)


def test_a_decision_says_which_try_of_how_many_it_is():
    assert [
        (d.tries, d.limit) for d in (decide_repair(9.0, incident(1.0, 2.0), AUTO), decide_repair(0.0, sick(), AUTO))
    ] == [
        (3, 3),
        (1, 20),
    ]


# ---- what is no number


def spoilt(*now, before, at=1.0, rank=0, **about):
    numerical = msgspec.structs.replace(fault(FaultClass.NUMERICAL, rank), request_ids=now)
    return Incident(fault=numerical, began_at=0.0, named=((at, tuple(before)),), **about)


def test_a_rank_that_computes_what_is_no_number_for_different_requests_gets_a_new_process():
    decision = decide_repair(2.0, spoilt("a", before="b"), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "for one request and then for another: it is the rank" in decision.reason


@pytest.mark.parametrize(
    "about",
    [
        {"before": "a"},
        {"before": "ab"},
        {"before": "b", "at": -100.0},
        {"before": "b", "narrows": True},
        {"before": "b", "rank": None},
    ],
    ids=["the same", "some of them", "long ago", "one is on trial", "nobody knows which rank"],
)
def test_where_that_may_be_the_request_it_is_retried(about):
    assert decide_repair(2.0, spoilt("a", **about), AUTO).action is Action.RETRY
