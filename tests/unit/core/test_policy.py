"""Decisions are pure and say why."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults import Fault, FaultClass
from holdfast.core.policy import Action, Incident, decide_repair, decide_wait, recent

AUTO = HoldfastConfig(max_retries=3, retry_window_s=60.0)
EXTERNAL = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=120.0)


def fault(fault_class=FaultClass.TRANSIENT):
    return Fault(fault_class=fault_class, error_type="RuntimeError", message="boom", engine_id=1, rank=0)


def incident(*retried_at, fault_class=FaultClass.TRANSIENT, began_at=0.0, **about):
    return Incident(fault=fault(fault_class), began_at=began_at, retried_at=retried_at, **about)


def nothing_wrong(**about):
    return Incident(fault=None, began_at=0.0, **about)


def test_an_exception_with_state_intact_is_retried():
    decision = decide_repair(0.0, incident(), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason == "exception with state intact; retry 1 of 3"


def test_the_reason_counts_the_retries_within_the_window():
    assert decide_repair(10.0, incident(1.0, 2.0), AUTO).reason.endswith("retry 3 of 3")


def test_more_retries_than_allowed_within_the_window_end_the_instance():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0), AUTO)
    assert decision.action is Action.END
    assert "3 retries within 60 s did not last (--max-retries 3)" in decision.reason
    assert "RuntimeError in engine 1, rank 0: boom" in decision.reason


def test_retries_older_than_the_window_are_forgiven():
    assert decide_repair(61.5, incident(1.0, 2.0, 3.0), AUTO).action is Action.RETRY


@pytest.mark.parametrize(("now", "kept"), [(60.0, (0.5, 1.0)), (60.5, (1.0,)), (61.0, ()), (0.0, (0.5, 1.0))])
def test_a_retry_leaves_the_window_exactly_when_it_is_as_old_as_the_window_is_long(now, kept):
    assert recent((0.5, 1.0), now, 60.0) == kept


def test_no_retries_allowed_means_the_first_fault_ends_the_instance():
    assert decide_repair(0.0, incident(), HoldfastConfig(max_retries=0)).action is Action.END


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
@pytest.mark.parametrize(
    ("fault_class", "why"),
    [
        (FaultClass.DEVICE, "the device error is sticky"),
        (FaultClass.WORKER_LOST, "a worker process is gone"),
        (FaultClass.UNRESPONSIVE, "a rank did not answer in time"),
    ],
)
def test_what_a_retry_cannot_repair_ends_at_once_whoever_decides(config, fault_class, why):
    decision = decide_repair(0.0, incident(fault_class=fault_class), config)
    assert decision.action is Action.END
    assert decision.reason.startswith(why)
    assert "boom" in decision.reason


def test_every_fault_class_has_a_decision():
    actions = {c: decide_repair(0.0, incident(fault_class=c), AUTO).action for c in FaultClass}
    assert [c for c, a in actions.items() if a is Action.RETRY] == [FaultClass.COMMUNICATOR, FaultClass.TRANSIENT]


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


def test_even_by_hand_a_pause_does_not_outlast_what_a_retry_cannot_repair():
    lost = incident(fault_class=FaultClass.WORKER_LOST, paused_by_hand=True)
    assert decide_repair(0.0, lost, AUTO).action is Action.END


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_group_that_stands_still_for_no_reason_is_let_go_on(config):
    decision = decide_repair(0.0, nothing_wrong(), config)
    assert decision.action is Action.RETRY
    assert decision.reason.startswith("it stands still and nothing is wrong")
