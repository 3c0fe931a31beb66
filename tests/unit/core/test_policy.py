"""Decisions are pure and say why: what is retried, and for how long."""

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass, is_of_the_process
from holdfast.core.policy.incident import Budget, Intensity
from holdfast.core.policy.ladder import Action, decide_repair, first_repair
from support.situations import (
    AUTO,
    EXTERNAL,
    NO_RESTARTS,
    fault,
    incident,
    nothing_wrong,
    opened,
    sick,
    situation,
)


def test_an_exception_with_state_intact_is_retried():
    decision = decide_repair(0.0, incident(), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason == "exception with state intact; retry 1 of 3"


def test_the_reason_counts_the_retries_within_the_window():
    assert decide_repair(10.0, incident(1.0, 2.0), AUTO).reason.endswith("retry 3 of 3")


def test_more_retries_than_allowed_within_the_window_end_the_instance_where_no_rank_is_the_root_cause():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0, rank=None), AUTO)
    assert decision.action is Action.END
    assert "3 retries within 60 s did not last (--max-retries 3)" in decision.reason
    assert "RuntimeError in engine 1: boom" in decision.reason


def test_more_retries_than_allowed_of_one_rank_s_fault_give_that_rank_a_new_process():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "3 retries within 60 s did not last (--max-retries 3)" in decision.reason
    assert "RuntimeError in engine 1, rank 0: boom; the rank gets a new process" in decision.reason


def test_more_retries_than_allowed_end_the_instance_where_workers_are_not_restarted():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0), NO_RESTARTS)
    assert decision.action is Action.END
    assert "3 retries within 60 s did not last" in decision.reason


def test_retries_older_than_the_window_are_forgiven():
    assert decide_repair(61.5, incident(1.0, 2.0, 3.0), AUTO).action is Action.RETRY


@pytest.mark.parametrize(("now", "kept"), [(60.0, (0.5, 1.0)), (60.5, (1.0,)), (61.0, ()), (0.0, (0.5, 1.0))])
def test_a_retry_leaves_the_window_exactly_when_it_is_as_old_as_the_window_is_long(now, kept):
    assert Budget((0.5, 1.0)).recent(Intensity("retries", 3, 60.0, "--max-retries"), now).tried_at == kept


def test_a_fault_that_brings_the_search_for_a_poison_request_on_is_no_further_try():
    decision = decide_repair(10.0, incident(1.0, 2.0, 3.0, search_progressed=True), AUTO)
    assert decision.action is Action.RETRY
    assert "not counted as a try" in decision.reason
    tried = (1.0,) * AUTO.max_worker_restarts
    decision = decide_repair(10.0, sick(search_progressed=True, restarted_at=tried), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "not counted as a try" in decision.reason


def test_where_workers_are_not_restarted_a_search_restarts_none_either():
    assert decide_repair(10.0, sick(search_progressed=True), NO_RESTARTS).action is Action.END


@pytest.mark.parametrize(("restarts", "action"), [(0, Action.END), (1, Action.RESTART_WORKERS)])
def test_no_retries_allowed_means_the_first_fault_goes_to_the_next_rung(restarts, action):
    config = HoldfastConfig(max_retries=0, max_worker_restarts=restarts, max_engine_restarts=0)
    assert decide_repair(0.0, incident(), config).action is action


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_silence_of_nobody_knows_whom_ends_at_once_whoever_decides(config):
    silent = incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, needs_worker_restart=True)
    decision = decide_repair(0.0, silent, config)
    assert decision.action is Action.END
    assert decision.reason.startswith("a rank did not answer in time and which rank is unknown")
    assert "boom" in decision.reason


def test_every_fault_class_has_a_decision():
    actions = {
        c: decide_repair(0.0, incident(fault_class=c, needs_worker_restart=is_of_the_process(fault(c))), AUTO).action
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
        assert decide_repair(500.0, opened(long_ago, 1.0), AUTO).action is Action.END
    restarted = sick(restarted_at=(1.0,) * 20)
    assert decide_repair(5000.0, restarted, AUTO).action is Action.RESTART_WORKERS
    assert decide_repair(5000.0, opened(restarted, 1.0), AUTO).action is Action.END


@pytest.mark.parametrize("config", [HoldfastConfig(max_retries=0), EXTERNAL])
def test_a_replacement_is_let_in_without_a_try_of_anything_whoever_decides(config):
    for fault_class in (None, FaultClass.COMMUNICATOR):
        found = (
            nothing_wrong(awaits_join=True)
            if fault_class is None
            else incident(fault_class=fault_class, awaits_join=True)
        )
        decision = decide_repair(0.0, found, config)
        assert (decision.action, decision.limit) == (Action.RETRY, 0)
        assert "replacement of an engine core joins" in decision.reason


# ---- what no row of the table names


def unknown(*unknown_retried_at, **about):
    return incident(*unknown_retried_at, fault_class=FaultClass.UNKNOWN, unknown_retried_at=unknown_retried_at, **about)


def test_an_unknown_error_is_retried_once():
    decision = decide_repair(0.0, unknown(), AUTO)
    assert decision.action is Action.RETRY
    assert decision.reason.startswith("unclassified error")


@pytest.mark.parametrize(("rank", "config", "action"), [(0, AUTO, Action.RESTART_WORKERS), (None, AUTO, Action.END)])
def test_of_two_unknown_errors_within_the_window_the_second_goes_one_rung_up(rank, config, action):
    decision = decide_repair(59.0, unknown(0.0, rank=rank), config)
    assert decision.action is action
    assert decision.reason.startswith("an unknown error was retried within 60 s already and has occurred again")
    assert decide_repair(60.0, unknown(0.0, rank=rank), config).action is Action.RETRY


def test_an_unknown_error_after_retries_for_errors_that_are_known_is_the_first_of_its_kind():
    after_others = incident(1.0, 2.0, fault_class=FaultClass.UNKNOWN)
    assert decide_repair(3.0, after_others, AUTO).action is Action.RETRY


def test_a_known_error_after_an_unknown_one_is_retried_as_ever():
    assert decide_repair(3.0, incident(1.0, unknown_retried_at=(1.0,)), AUTO).action is Action.RETRY


def test_a_step_that_computed_what_is_no_number_is_repeated_and_says_so():
    decision = decide_repair(0.0, incident(fault_class=FaultClass.NUMERICAL), AUTO)
    assert decision.action is Action.RETRY
    assert "the KV of the step is suspect" in decision.reason


# ---- what is no number


def spoilt(*now, before, at=1.0, rank=0, **about):
    numerical = msgspec.structs.replace(fault(FaultClass.NUMERICAL, rank), request_ids=now)
    return situation(fault=numerical, named_requests=((at, tuple(before)),), **about)


def test_a_rank_that_computes_what_is_no_number_for_different_requests_gets_a_new_process():
    decision = decide_repair(2.0, spoilt("a", before="b"), AUTO)
    assert decision.action is Action.RESTART_WORKERS
    assert "for one request and then for another: the rank is at fault" in decision.reason


@pytest.mark.parametrize(
    "about",
    [
        {"before": "a"},
        {"before": "ab"},
        {"before": "b", "at": -100.0},
        {"before": "b", "search_progressed": True},
        {"before": "b", "rank": None},
    ],
    ids=["the same", "some of them", "long ago", "one is on trial", "nobody knows which rank"],
)
def test_where_that_may_be_the_request_it_is_retried(about):
    assert decide_repair(2.0, spoilt("a", **about), AUTO).action is Action.RETRY


@pytest.mark.parametrize("fault_class", FaultClass)
def test_the_first_repair_of_a_class_in_words_is_the_one_that_is_decided(fault_class):
    found = incident(fault_class=fault_class, needs_worker_restart=is_of_the_process(fault(fault_class)))
    decided = decide_repair(0.0, found, AUTO).action
    assert first_repair(fault_class).startswith("retry") == (decided is Action.RETRY)
