"""Decisions in full: the action, the whole reason that an operator reads, and the figures."""

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.policy.incident import Capacity
from holdfast.core.policy.ladder import (
    Action,
    Decision,
    decide_engine_restart,
    decide_on_engine,
    decide_repair,
    decide_wait,
    first_repair,
    is_due_again,
    why_restart,
    why_retry,
)
from support.situations import AUTO, EXTERNAL, NO_RESTARTS, fault, incident, nothing_wrong, opened, sick, situation

LIMITED = HoldfastConfig(max_worker_restarts=2, max_engine_restarts=2, worker_restart_window_s=60.0, max_retries=3)
FALLBACK = HoldfastConfig(fault_policy="external", external_fallback="auto", engine_recovery_timeout_s=120.0)
DRY_RUN = HoldfastConfig(fault_policy="dry-run", engine_recovery_timeout_s=120.0)
BOOM = "RuntimeError in engine 1, rank 0: boom"
OFF = "engine core restarts are off (--max-engine-restarts 0)"
LOST = f"a worker process was lost: {BOOM}"


@pytest.mark.parametrize(
    ("found", "config", "decision"),
    [
        (
            incident(1.0),
            AUTO,
            Decision(Action.RETRY, "exception with state intact; retry 2 of 3", tries=2, limit=3),
        ),
        (
            incident(needs_rebuild=True),
            AUTO,
            Decision(
                Action.RETRY, "exception with state intact; collectives are rebuilt; retry 1 of 3", tries=1, limit=3
            ),
        ),
        (nothing_wrong(), AUTO, Decision(Action.RETRY, "paused without a fault; retry 1 of 3", tries=1, limit=3)),
        (
            incident(fault_class=FaultClass.NUMERICAL),
            AUTO,
            Decision(
                Action.RETRY,
                "non-finite logits (NaN or Inf); the KV of the step is suspect, repeating the step; retry 1 of 3",
                tries=1,
                limit=3,
            ),
        ),
        (
            incident(fault_class=FaultClass.UNKNOWN),
            AUTO,
            Decision(Action.RETRY, "unclassified error; retrying once; retry 1 of 3", tries=1, limit=3),
        ),
        (
            incident(1.0, 2.0, 3.0),
            AUTO,
            Decision(
                Action.RESTART_WORKERS,
                f"3 retries within 60 s did not last (--max-retries 3); last fault: {BOOM}; "
                "the rank gets a new process; worker restart 1 of 20",
                tries=1,
                limit=20,
            ),
        ),
        (
            situation(fault=None, retried_at=(1.0, 2.0, 3.0)),
            AUTO,
            Decision(Action.END, f"3 retries within 60 s did not last (--max-retries 3); last fault: none; {OFF}"),
        ),
        (
            incident(fault_class=FaultClass.UNKNOWN, retried_at=(1.0,), unknown_retried_at=(1.0,)),
            AUTO,
            Decision(
                Action.RESTART_WORKERS,
                f"an unknown error was retried within 60 s already and has occurred again: {BOOM}; "
                "the rank gets a new process; worker restart 1 of 20",
                tries=1,
                limit=20,
            ),
        ),
        (
            sick(restarted_at=(1.0,)),
            LIMITED,
            Decision(
                Action.RESTART_WORKERS, f"{LOST}; the rank gets a new process; worker restart 2 of 2", tries=2, limit=2
            ),
        ),
        (
            sick(restarted_at=(1.0, 2.0)),
            LIMITED,
            Decision(
                Action.RESTART_ENGINE,
                f"{LOST}; 2 worker restarts within 60 s did not last (--max-worker-restarts 2); "
                "replacing the engine core; engine core restart 1 of 2",
                tries=1,
                limit=2,
            ),
        ),
        (
            sick(),
            NO_RESTARTS,
            Decision(Action.END, f"{LOST}; worker restarts are off (--max-worker-restarts 0); {OFF}"),
        ),
        (
            sick(restarted_at=(9.0,), failed_restarts=3),
            AUTO,
            Decision(Action.AWAIT, f"{LOST}; the restart failed 3 times; next try in 1.0 s", retry_at=11.0),
        ),
        (
            sick(search_progressed=True),
            AUTO,
            Decision(
                Action.RESTART_WORKERS,
                f"{LOST}; the rank gets a new process; "
                "the search for a poison request has fewer suspects now: not counted as a try",
            ),
        ),
        (
            incident(search_progressed=True),
            AUTO,
            Decision(Action.RETRY, "the search for a poison request has fewer suspects now: not counted as a try"),
        ),
        (
            incident(needs_rebuild=True, unrebuildable=("graphs", "ring", "graphs")),
            AUTO,
            Decision(Action.END, f"broken collectives cannot be rebuilt in place (graphs; ring); fault: {BOOM}; {OFF}"),
        ),
        (
            nothing_wrong(needs_rebuild=True, unrebuildable=("graphs",), is_lockstep=True),
            AUTO,
            Decision(Action.END, "broken collectives cannot be rebuilt in place (graphs); fault: none"),
        ),
        (
            incident(fault_class=FaultClass.UNRESPONSIVE, rank=None),
            AUTO,
            Decision(
                Action.END,
                f"a rank did not answer in time and which rank is unknown; RuntimeError in engine 1: boom; {OFF}",
            ),
        ),
        (
            incident(restart_command="c"),
            EXTERNAL,
            Decision(Action.RESTART_WORKERS, "ordered by operator; only the named ranks get a new process"),
        ),
        (
            nothing_wrong(awaits_join=True),
            EXTERNAL,
            Decision(Action.RETRY, "the replacement of an engine core joins; collectives are rebuilt"),
        ),
        (
            incident(paused_by_operator=True),
            AUTO,
            Decision(Action.AWAIT, "paused by operator; waiting for resume"),
        ),
        (incident(), EXTERNAL, Decision(Action.AWAIT, "waiting up to 110 s for a command")),
        (incident(), FALLBACK, Decision(Action.AWAIT, "waiting up to 110 s for a command, then the ladder decides")),
        (
            incident(),
            DRY_RUN,
            Decision(
                Action.AWAIT,
                "dry run: would retry: exception with state intact; retry 1 of 10; waiting up to 110 s for a command",
                would=Action.RETRY,
            ),
        ),
        (
            sick(capacity=Capacity(ranks_out=3, engine_ranks=4, total_ranks=8)),
            HoldfastConfig(max_ranks_out=2, max_engine_restarts=0),
            Decision(Action.END, f"{LOST}; 3 of 8 ranks would be out at once (--max-ranks-out 2); {OFF}"),
        ),
    ],
)
def test_a_repair_is_decided_with_the_whole_reason(found, config, decision):
    assert decide_repair(10.0, found, config) == decision


def test_after_the_timeout_the_instance_ends_with_the_fault():
    assert decide_wait(120.0, incident(), EXTERNAL) == Decision(
        Action.END, f"no command repaired the fault within 120 s (--engine-recovery-timeout); fault: {BOOM}"
    )


def test_after_the_timeout_a_fallback_climbs_the_ladder():
    assert decide_wait(120.0, incident(), FALLBACK) == Decision(
        Action.RETRY,
        "no command repaired the fault within 120 s (--engine-recovery-timeout); the ladder decides: "
        "exception with state intact; retry 1 of 10",
        tries=1,
        limit=10,
    )


def test_a_group_without_a_fault_waits_for_the_operator():
    assert decide_wait(500.0, nothing_wrong(), EXTERNAL) == Decision(
        Action.AWAIT, "paused by operator; waiting for resume"
    )


@pytest.mark.parametrize(
    ("used", "config", "capacity", "decision"),
    [
        (
            1,
            LIMITED,
            Capacity(),
            Decision(
                Action.RESTART_ENGINE,
                "replacing the engine core; engine core restart 2 of 2",
                after_s=1.0,
                tries=2,
                limit=2,
            ),
        ),
        (
            2,
            LIMITED,
            Capacity(),
            Decision(Action.END, "2 engine core restarts within 600 s did not last (--max-engine-restarts 2)"),
        ),
        (0, AUTO, Capacity(), Decision(Action.END, OFF)),
        (
            0,
            EXTERNAL,
            Capacity(),
            Decision(Action.END, "with --fault-policy external no engine core is restarted without a command"),
        ),
        (
            0,
            HoldfastConfig(max_ranks_out="50%"),
            Capacity(ranks_out=1, out_elsewhere=1, engine_ranks=4, total_ranks=8),
            Decision(Action.END, "5 of 8 ranks would be out at once (--max-ranks-out 50%)"),
        ),
    ],
)
def test_an_engine_core_is_replaced_or_not_with_the_whole_reason(used, config, capacity, decision):
    assert decide_engine_restart(used, config, capacity) == decision


REFUSED = Decision(Action.END, "why not")


@pytest.mark.parametrize(
    ("siblings", "config", "decision"),
    [
        (0, HoldfastConfig(), Decision(Action.END, "lost; why not")),
        (2, EXTERNAL, Decision(Action.END, "lost; why not")),
        (
            2,
            HoldfastConfig(min_engines=3),
            Decision(Action.END, "lost; why not; only 2 engine cores would serve (--min-engines 3)"),
        ),
        (
            2,
            HoldfastConfig(min_engines=2),
            Decision(Action.LEAVE_OUT, "lost; why not; left out, 2 engine cores serve on; next try in 600 s"),
        ),
        (
            1,
            HoldfastConfig(max_engine_restarts=0),
            Decision(Action.LEAVE_OUT, "lost; why not; left out, 1 engine cores serve on; not tried again"),
        ),
    ],
)
def test_an_engine_core_that_is_not_replaced_is_left_out_or_ends_the_instance(siblings, config, decision):
    assert decide_on_engine("lost", REFUSED, siblings, config) == decision


@pytest.mark.parametrize(
    ("now", "config", "is_due"),
    [
        (609.9, HoldfastConfig(), False),
        (610.0, HoldfastConfig(), True),
        (610.0, HoldfastConfig(max_engine_restarts=1), True),
        (610.0, HoldfastConfig(max_engine_restarts=0), False),
        (610.0, EXTERNAL, False),
    ],
)
def test_an_engine_core_that_was_left_out_is_due_again_after_the_window(now, config, is_due):
    assert is_due_again(now, 10.0, config) is is_due


def test_why_ranks_get_a_new_process_is_said_for_every_class():
    assert why_restart(None) == why_restart(fault()) == "the process of a rank cannot be trusted any more"
    assert why_restart(fault(FaultClass.DEVICE)) == (
        f"the device error is sticky and the worker cannot continue: {BOOM}"
    )
    assert why_retry(None) == "paused without a fault"
    assert first_repair(FaultClass.DEVICE) == "restart worker: a new process for the rank"


def test_rungs_are_counted_from_the_cheapest_to_the_last():
    assert [action.rung for action in Action] == [1, 2, 3, 4, 0, 5, 0]


def test_a_rank_that_computes_non_finite_logits_for_different_requests_is_at_fault():
    numerical = msgspec.structs.replace(fault(FaultClass.NUMERICAL), request_ids=("a",))
    assert decide_repair(2.0, situation(fault=numerical, named_requests=((1.0, ("b",)),)), AUTO) == Decision(
        Action.RESTART_WORKERS,
        "non-finite logits for one request and then for another: the rank is at fault; "
        "the rank gets a new process; worker restart 1 of 20",
        tries=1,
        limit=20,
    )


def test_non_finite_logits_of_one_open_incident_count_however_long_ago():
    numerical = msgspec.structs.replace(fault(FaultClass.NUMERICAL), request_ids=("a",))
    found = situation(fault=numerical, named_requests=((1.0, ("b",)),))
    assert decide_repair(500.0, found, AUTO).action is Action.RETRY
    assert decide_repair(500.0, opened(found, 0.0), AUTO).action is Action.RESTART_WORKERS


def test_restarts_of_the_engine_core_count_where_workers_are_not_restarted():
    config = HoldfastConfig(max_worker_restarts=0, max_engine_restarts=3)
    decision = decide_repair(10.0, sick(engine_restarted_at=(1.0,)), config)
    assert (decision.action, decision.tries, decision.limit) == (Action.RESTART_ENGINE, 2, 3)
