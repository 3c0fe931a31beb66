"""Decisions are pure and say why: what waits for somebody, and for how long."""

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.policy.ladder import Action, decide_engine_restart, decide_repair, decide_wait
from support.situations import AUTO, EXTERNAL, incident, nothing_wrong, sick

# ---- external


def test_external_waits_for_an_instruction_and_says_how_long():
    decision = decide_repair(30.0, incident(waiting_since=10.0), EXTERNAL)
    assert (decision.action, decision.reason) == (Action.AWAIT, "waiting up to 100 s for a command")


@pytest.mark.parametrize(("now", "action"), [(129.9, Action.AWAIT), (130.0, Action.END), (1e9, Action.END)])
def test_waiting_ends_at_the_recovery_timeout(now, action):
    assert decide_wait(now, incident(waiting_since=10.0), EXTERNAL).action is action


def test_external_does_not_count_retries_that_somebody_ordered():
    assert decide_repair(20.0, incident(*range(19), waiting_since=10.0), EXTERNAL).action is Action.AWAIT


# ---- external, with a fallback

FALLBACK = HoldfastConfig(fault_policy="external", external_fallback="auto", engine_recovery_timeout_s=120.0)


@pytest.mark.parametrize(("found", "then"), [(incident(), Action.RETRY), (sick(), Action.RESTART_WORKERS)])
def test_after_the_timeout_the_ladder_is_climbed_where_a_fallback_says_so(found, then):
    for decide in (decide_repair, decide_wait):
        waiting = decide(119.0, found, FALLBACK)
        assert (waiting.action, waiting.reason) == (
            Action.AWAIT,
            "waiting up to 1 s for a command, then the ladder decides",
        )
        decision = decide(120.0, found, FALLBACK)
        assert decision.action is then
        assert decision.reason.startswith(
            "no command repaired the fault within 120 s (--engine-recovery-timeout); the ladder decides:"
        )


def test_the_ladder_of_a_fallback_ends_where_it_ends_by_itself():
    tired = incident(120.0, 120.1, 120.2, rank=None, engine_restarted_at=(1.0,))
    config = msgspec.structs.replace(FALLBACK, max_retries=3, max_engine_restarts=1)
    assert decide_repair(121.0, tired, config).action is Action.END


def test_with_a_fallback_what_is_gone_is_replaced_at_once_since_no_instruction_could_reach_it():
    assert decide_engine_restart(0, FALLBACK).action is Action.RESTART_ENGINE
    assert decide_engine_restart(0, EXTERNAL).action is Action.END


def test_with_a_fallback_a_pause_by_operator_still_has_no_end():
    by_operator = incident(paused_by_operator=True)
    assert decide_wait(1e6, by_operator, FALLBACK).action is Action.AWAIT


# ---- dry run

DRY = HoldfastConfig(fault_policy="dry-run", engine_recovery_timeout_s=120.0)


@pytest.mark.parametrize(("found", "would"), [(incident(), Action.RETRY), (sick(), Action.RESTART_WORKERS)])
def test_a_dry_run_says_what_it_would_do_and_waits(found, would):
    decision = decide_repair(0.0, found, DRY)
    assert (decision.action, decision.would) == (Action.AWAIT, would)
    assert decision.reason.startswith(f"dry run: would {would}: ")
    assert decision.reason.endswith("; waiting up to 120 s for a command")
    assert decide_repair(120.0, found, DRY).action is Action.END


def test_a_dry_run_repairs_nothing_that_is_gone():
    assert decide_engine_restart(0, DRY).action is Action.END
    silent = incident(fault_class=FaultClass.UNRESPONSIVE, rank=None, needs_worker_restart=True)
    decision = decide_repair(0.0, silent, DRY)
    assert (decision.action, decision.would) == (Action.END, Action.RESTART_ENGINE)


def test_in_a_dry_run_what_an_operator_does_is_done():
    asked = decide_repair(0.0, nothing_wrong(restart_command="restart", needs_worker_restart=True), DRY)
    assert (asked.action, asked.would) == (Action.RESTART_WORKERS, None)
    by_operator = decide_repair(0.0, incident(paused_by_operator=True), DRY)
    assert (by_operator.action, by_operator.would) == (Action.AWAIT, None)


def test_a_decision_says_which_try_of_how_many_it_is():
    assert [
        (d.tries, d.limit) for d in (decide_repair(9.0, incident(1.0, 2.0), AUTO), decide_repair(0.0, sick(), AUTO))
    ] == [
        (3, 3),
        (1, 20),
    ]


# ---- paused by operator


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
@pytest.mark.parametrize("paused", [nothing_wrong(paused_by_operator=True), incident(paused_by_operator=True)])
def test_what_was_paused_by_operator_waits_for_an_operator_however_long_that_takes(config, paused):
    for decide in (decide_repair, decide_wait):
        decision = decide(1e9, paused, config)
        assert (decision.action, decision.reason) == (Action.AWAIT, "paused by operator; waiting for resume")


def test_a_worker_that_is_lost_while_paused_by_operator_waits_for_the_operator_too():
    lost = sick(paused_by_operator=True)
    assert decide_repair(0.0, lost, AUTO).action is Action.AWAIT


def test_even_by_operator_a_pause_does_not_outlast_what_no_process_can_be_replaced_for():
    silent = incident(
        fault_class=FaultClass.UNRESPONSIVE, rank=None, needs_worker_restart=True, paused_by_operator=True
    )
    assert decide_repair(0.0, silent, AUTO).action is Action.END


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_group_that_stands_still_for_no_reason_is_let_go_on(config):
    decision = decide_repair(0.0, nothing_wrong(), config)
    assert decision.action is Action.RETRY
    assert decision.reason.startswith("paused without a fault")
