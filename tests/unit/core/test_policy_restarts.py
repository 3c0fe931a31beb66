"""Decisions are pure and say why: who gets a new process, and when that is too much."""

from dataclasses import replace
from math import inf

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.policy.incident import Budget, Capacity, ranks_allowed_out
from holdfast.core.policy.ladder import Action, decide_engine_restart, decide_repair
from support.situations import AUTO, EXTERNAL, NO_RESTARTS, OF_THE_PROCESS, incident, nothing_wrong, opened, sick

# ---- worker restarts


@pytest.mark.parametrize(("fault_class", "why"), OF_THE_PROCESS)
def test_what_a_retry_cannot_repair_gives_the_rank_a_new_process(fault_class, why):
    decision = decide_repair(0.0, sick(fault_class), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert why in decision.reason
    assert decision.reason.endswith("boom; the rank gets a new process; worker restart 1 of 20")


@pytest.mark.parametrize(("fault_class", "why"), OF_THE_PROCESS)
def test_what_a_retry_cannot_repair_ends_at_once_where_workers_are_not_restarted(fault_class, why):
    decision = decide_repair(0.0, sick(fault_class), NO_RESTARTS)
    assert decision.action is Action.END
    assert why in decision.reason
    assert "boom; worker restarts are off (--max-worker-restarts 0)" in decision.reason
    assert decision.reason.endswith("; engine core restarts are off (--max-engine-restarts 0)")


def test_external_a_restart_too_waits_for_an_instruction():
    decision = decide_repair(30.0, sick(waiting_since=10.0), EXTERNAL)
    assert (decision.action, decision.reason) == (Action.AWAIT, "waiting up to 100 s for a command")


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_restart_that_was_asked_for_is_done_whoever_decides_and_says_so(config):
    decision = decide_repair(0.0, nothing_wrong(restart_command="restart", needs_worker_restart=True), config)
    assert decision.action is Action.RESTART_WORKERS
    assert decision.reason == "ordered by operator; only the named ranks get a new process"


def test_a_restart_that_was_asked_for_does_not_depend_on_how_many_there_were():
    asked = nothing_wrong(restart_command="restart", needs_worker_restart=True, restarted_at=(0.0,) * 20)
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
    assert decide_repair(100.0, sick(failed_restarts=failed, restarted_at=tried_at), AUTO).retry_at is None


@pytest.mark.parametrize(("failed", "pause_s"), [(2, 1.0), (3, 2.0), (4, 4.0), (6, 16.0), (7, 30.0), (12, 30.0)])
def test_restarts_that_fail_again_and_again_are_tried_with_growing_pauses_up_to_a_bound(failed, pause_s):
    again = sick(failed_restarts=failed, restarted_at=(50.0, 100.0))
    early = decide_repair(100.0, again, AUTO)
    assert (early.action, early.retry_at) == (Action.AWAIT, 100.0 + pause_s)
    assert f"the restart failed {failed} times; next try in {pause_s:.1f} s" in early.reason
    assert decide_repair(100.0 + pause_s, again, AUTO).action is Action.RESTART_WORKERS


def test_a_rank_that_is_sick_beside_a_fault_of_another_kind_gets_a_new_process_too():
    decision = decide_repair(0.0, incident(needs_worker_restart=True), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert decision.reason.startswith("the process of a rank cannot be trusted any more")


def test_broken_collectives_that_cannot_be_rebuilt_end_at_once_although_a_rank_could_be_restarted():
    for about in ({}, {"restart_command": "restart"}):
        lost = sick(needs_rebuild=True, unrebuildable=("custom all-reduce",), **about)
        assert decide_repair(0.0, lost, AUTO).action is Action.END


# ---- engine core restarts

CLIMBING = HoldfastConfig(max_retries=3, max_worker_restarts=1, max_engine_restarts=2, engine_restart_window_s=100.0)
CLIMBS = [
    (incident(1.0, 2.0, 3.0, rank=None), "3 retries within 60 s did not last"),
    (sick(restarted_at=(0.0,)), "1 worker restarts within 600 s did not last"),
    (
        incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, needs_worker_restart=True),
        "a rank did not answer in time",
    ),
    (
        incident(needs_rebuild=True, unrebuildable=("custom all-reduce",)),
        "broken collectives cannot be rebuilt in place",
    ),
]


@pytest.mark.parametrize(("found", "why"), CLIMBS)
def test_what_no_smaller_repair_helped_against_gets_another_engine_core(found, why):
    decision = decide_repair(5.0, found, CLIMBING)
    assert decision.action is Action.RESTART_ENGINE
    assert why in decision.reason
    assert decision.reason.endswith("replacing the engine core; engine core restart 1 of 2")


@pytest.mark.parametrize(("found", "why"), CLIMBS)
def test_more_engine_core_restarts_than_allowed_end_the_instance(found, why):
    decision = decide_repair(5.0, replace(found, engine_restarts=Budget((1.0, 2.0))), CLIMBING)
    assert decision.action is Action.END
    assert why in decision.reason
    assert decision.reason.endswith("2 engine core restarts within 100 s did not last (--max-engine-restarts 2)")


def test_nobody_is_started_to_join_a_lockstep_group_that_cannot_rebuild_its_collectives():
    stuck = incident(needs_rebuild=True, unrebuildable=("custom all-reduce",))
    assert decide_repair(5.0, replace(stuck, is_lockstep=True), CLIMBING).action is Action.END


def test_restarts_of_long_ago_do_not_count():
    config = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)
    tired = incident(rank=None, engine_restarted_at=(1.0, 2.0, 3.0), retried_at=(200.0,) * 10)
    decision = decide_repair(200.0, tired, config)
    assert (decision.action, decision.tries) == (Action.RESTART_ENGINE, 1)
    still_open = opened(tired, 2.0)
    assert decide_repair(200.0, still_open, config).tries == 3


@pytest.mark.parametrize(
    ("config", "reason"),
    [(EXTERNAL, "without a command"), (HoldfastConfig(max_engine_restarts=0), "--max-engine-restarts 0")],
)
def test_an_engine_core_that_is_not_replaced_says_why(config, reason):
    plan = decide_engine_restart(0, config)
    assert plan.action is Action.END
    assert reason in plan.reason


# ---- broken collectives


def test_broken_collectives_are_rebuilt_and_the_reason_says_so():
    decision = decide_repair(0.0, incident(needs_rebuild=True), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason == "exception with state intact; collectives are rebuilt; retry 1 of 3"


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_broken_collectives_that_cannot_be_rebuilt_end_at_once_whoever_decides_and_say_what(config):
    decision = decide_repair(0.0, incident(needs_rebuild=True, unrebuildable=("custom all-reduce",) * 2), config)
    assert decision.action is Action.END
    assert "cannot be rebuilt in place (custom all-reduce)" in decision.reason
    assert "boom" in decision.reason


def test_what_cannot_be_rebuilt_does_not_matter_while_nothing_is_broken():
    assert decide_repair(0.0, incident(unrebuildable=("custom all-reduce",)), AUTO).action is Action.RETRY


# ---- how many ranks may be out at once


def test_more_ranks_out_than_allowed_are_not_replaced_one_by_one():
    config = HoldfastConfig(max_ranks_out=1)
    two_of_four = Capacity(ranks_out=2, out_elsewhere=0, engine_ranks=4, total_ranks=4)
    decision = decide_repair(0.0, sick(capacity=two_of_four), config)
    assert decision.action is Action.RESTART_ENGINE
    assert "2 of 4 ranks would be out at once (--max-ranks-out 1); replacing the engine core" in decision.reason
    assert (
        decide_repair(0.0, sick(capacity=Capacity(ranks_out=1, engine_ranks=4, total_ranks=4)), config).action
        is Action.RESTART_WORKERS
    )


def test_an_engine_core_is_not_replaced_where_too_many_ranks_are_out_elsewhere_already():
    config = HoldfastConfig(max_ranks_out="50%")
    elsewhere = Capacity(ranks_out=3, out_elsewhere=2, engine_ranks=1, total_ranks=4)
    decision = decide_repair(0.0, sick(capacity=elsewhere), config)
    assert decision.action is Action.END
    assert decision.reason.endswith("3 of 4 ranks would be out at once (--max-ranks-out 50%)")
    assert (
        decide_engine_restart(0, config, Capacity(ranks_out=2, out_elsewhere=1, engine_ranks=1, total_ranks=4)).action
        is Action.RESTART_ENGINE
    )


def test_the_only_engine_core_that_is_out_may_always_be_replaced():
    assert (
        decide_engine_restart(
            0, HoldfastConfig(max_ranks_out=0), Capacity(ranks_out=4, engine_ranks=4, total_ranks=4)
        ).action
        is Action.RESTART_ENGINE
    )


@pytest.mark.parametrize(
    ("cap", "total", "allowed"), [(0, 4, 0), (3, 4, 3), ("25%", 8, 2), ("25%", 2, 1), ("12.5%", 8, 1), ("100%", 1, inf)]
)
def test_a_cap_is_a_number_of_ranks_or_a_share_of_all_that_allows_one_at_least(cap, total, allowed):
    assert ranks_allowed_out(cap, total) == allowed


def test_without_a_cap_all_ranks_may_be_out():
    assert (
        decide_repair(0.0, sick(capacity=Capacity(ranks_out=9, engine_ranks=8, total_ranks=8)), AUTO).action
        is Action.RESTART_WORKERS
    )
