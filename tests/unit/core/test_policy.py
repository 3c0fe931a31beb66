"""Decisions are pure and say why."""

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults import Fault, FaultClass, is_of_the_process
from holdfast.core.policy import Action, Incident, decide_repair, decide_replacement, decide_wait, recent

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


def incident(*retried_at, fault_class=FaultClass.TRANSIENT, began_at=0.0, rank=0, **about):
    return Incident(fault=fault(fault_class, rank), began_at=began_at, retried_at=retried_at, **about)


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
    assert [c for c, a in actions.items() if a is Action.RETRY] == [FaultClass.COMMUNICATOR, FaultClass.TRANSIENT]
    assert {a for c, a in actions.items() if is_of_the_process(fault(c))} == {Action.RESTART_WORKERS}


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
    assert decide_replacement(200.0, (1.0, 2.0, 3.0), config).is_possible


@pytest.mark.parametrize(
    ("config", "reason"),
    [(EXTERNAL, "unasked"), (HoldfastConfig(max_engine_restarts=0), "--max-engine-restarts 0")],
)
def test_an_engine_core_that_is_not_replaced_says_why(config, reason):
    plan = decide_replacement(0.0, (), config)
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
