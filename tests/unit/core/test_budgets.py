"""Restart intensity: which tries count, and what outlasts an incident that is closed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.instance.deadlines import KEEPALIVE_S
from holdfast.core.instance.group import MAX_POISONS
from holdfast.core.policy.incident import (
    MAX_BACKOFF_S,
    MAX_NAMED,
    Budget,
    GroupBudgets,
    Intensity,
    backoff_s,
    engine_restart_intensity,
    process_restart_intensity,
    retry_intensity,
    unknown_retry_intensity,
    worker_restart_intensity,
)
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import ReplaceEngine, Send, Settle
from support.groups_bench import a_pair, two_pairs
from support.instance_bench import EXTERNAL, Bench, a_fault, is_keepalive

THREE = Intensity("retries", 3, 60.0, "--max-retries")
TIMES = st.lists(st.floats(0.0, 1000.0), max_size=10).map(lambda times: tuple(sorted(times)))


# ---- restart intensity


@given(times=TIMES, now=st.floats(1000.0, 2000.0), opened_at=st.floats(0.0, 2000.0))
def test_a_try_counts_within_the_window_or_within_the_open_incident(times, now, opened_at):
    expected = tuple(at for at in times if now - at < 60.0 or at >= opened_at)
    budget = Budget(times)
    assert budget.recent(THREE, now, opened_at).tried_at == expected
    assert budget.used(THREE, now, opened_at) == len(expected)
    assert budget.spend(THREE, now, opened_at).tried_at == (*expected, now)


@given(times=TIMES, now=st.floats(1000.0, 2000.0))
def test_without_an_open_incident_only_the_window_counts(times, now):
    assert Budget(times).used(THREE, now) == sum(now - at < 60.0 for at in times)


def test_a_budget_is_used_up_at_its_limit_and_says_so():
    assert THREE.exhausted(2) is None
    assert THREE.exhausted(3) == "3 retries within 60 s did not last (--max-retries 3)"
    assert THREE.exhausted(4) == "4 retries within 60 s did not last (--max-retries 3)"


def test_what_is_refunded_are_the_last_tries():
    assert Budget((1.0, 2.0, 3.0)).refund(2) == Budget((1.0,))
    assert Budget((1.0,)).refund(2) == Budget()


def test_the_last_try_of_an_empty_budget_is_long_ago():
    assert Budget((1.0, 2.0)).last_at == 2.0
    assert Budget().last_at == float("-inf")


def test_limits_and_windows_are_those_of_the_settings_and_of_their_flags():
    config = HoldfastConfig(
        max_retries=1,
        retry_window_s=2.0,
        max_worker_restarts=3,
        worker_restart_window_s=4.0,
        max_engine_restarts=5,
        engine_restart_window_s=6.0,
        max_api_server_restarts=7,
        api_server_restart_window_s=8.0,
    )
    intensities = [
        make(config)
        for make in (
            retry_intensity,
            unknown_retry_intensity,
            worker_restart_intensity,
            engine_restart_intensity,
            process_restart_intensity,
        )
    ]
    assert [(i.limit, i.window_s) for i in intensities] == [(1, 2.0), (1, 2.0), (3, 4.0), (5, 6.0), (7, 8.0)]


def test_the_backoff_doubles_up_to_its_bound():
    assert [backoff_s(tries) for tries in (0, 1, 2, 3, 4, 5, 6, 100)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert MAX_BACKOFF_S == 30.0


# ---- the budgets of a group


def test_a_refund_takes_back_retries_and_those_of_them_that_were_for_unknown_errors():
    budgets = GroupBudgets(Budget((1.0, 2.0, 3.0)), Budget((1.0, 3.0)), Budget((0.5,)), ((1.0, ("a",)),))
    budgets.refund(2)
    assert budgets == GroupBudgets(Budget((1.0,)), Budget((1.0,)), Budget((0.5,)))


def test_a_refund_takes_back_worker_restarts_where_there_was_no_retry_since():
    budgets = GroupBudgets(worker_restarts=Budget((1.0, 2.0, 3.0)))
    budgets.refund(2)
    assert budgets == GroupBudgets(worker_restarts=Budget((1.0,)))


def test_of_the_requests_that_faults_named_the_latest_are_kept():
    budgets = GroupBudgets()
    budgets.note_named((), 0.0)
    assert budgets.named_requests == ()
    for at in range(MAX_NAMED + 3):
        budgets.note_named((f"request-{at}",), float(at))
    assert [at for at, _ in budgets.named_requests] == [float(at) for at in range(3, MAX_NAMED + 3)]


# ---- what outlasts an incident


def recover_from_a_fault(bench, fault_class=FaultClass.TRANSIENT):
    """A whole incident of engine 0; the figures of its decision."""
    bench.faulted(0, fault=a_fault(fault_class=fault_class))
    bench.paused_by_fault(0, fault=a_fault(fault_class=fault_class))
    decision = [e.decision for e in bench.events if e.decision][-1]
    bench.recovered(0)
    return decision.action, decision.tries


def test_a_second_unknown_fault_within_the_window_is_not_retried():
    bench = Bench(HoldfastConfig())
    assert recover_from_a_fault(bench, FaultClass.UNKNOWN) == ("retry", 1)
    action, _ = recover_from_a_fault(bench, FaultClass.UNKNOWN)
    assert action == "restart-workers"


@given(pauses=st.lists(st.floats(0.1, 40.0), max_size=8), fault_class=st.sampled_from(["transient", "worker-lost"]))
def test_budgets_outlast_closed_incidents_for_as_long_as_their_windows(pauses, fault_class):
    config = HoldfastConfig(max_retries=100, retry_window_s=60.0, max_worker_restarts=100, worker_restart_window_s=60.0)
    bench = Bench(config)
    tried_at = []
    for pause_s in (*pauses, 1.0):
        tried_at = [*(at for at in tried_at if bench.now - at < 60.0), bench.now]
        action, tries = recover_from_a_fault(bench, FaultClass(fault_class))
        assert (action == "retry") == (fault_class == "transient")
        assert tries == len(tried_at)
        assert (bench.view().state, bench.view().fault_info, bench.view().reason) == ("healthy", UNSET, None)
        bench.now += pause_s


def test_engine_core_restarts_outlast_the_incident_that_each_of_them_closes():
    bench = Bench(HoldfastConfig(max_engine_restarts=2, engine_restart_window_s=100.0))
    for pid in (8, 9):
        bench.lost()
        bench.attached(pid=pid)
        assert (bench.view().state, bench.view().reason) == ("healthy", None)
        bench.now += 1.0
    bench.lost()
    assert "2 engine core restarts within 100 s did not last" in bench.defeat


@pytest.mark.parametrize("soft", [True, False])
def test_of_a_pause_that_was_resumed_nothing_is_left(soft):
    bench = Bench()
    bench.pause("pause", soft=soft)
    bench.paused(broken=not soft)
    bench.resume("resume")
    bench.recovered()
    assert not bench.view().paused_by_operator
    assert recover_from_a_fault(bench) == ("retry", 1)


def test_failed_restarts_of_a_closed_incident_cause_no_backoff_in_the_next():
    bench = Bench()
    lost = a_fault(fault_class=FaultClass.WORKER_LOST)
    bench.faulted(fault=lost)
    bench.paused_by_fault(fault=lost)
    bench.aborted(fault=lost)
    bench.aborted(fault=lost)
    bench.tick(1.0)
    bench.recovered(replaced=(0,))
    bench.faulted(fault=lost)
    bench.paused_by_fault(fault=lost)
    assert bench.view().state == "recovering"


def test_in_lockstep_retries_do_not_outlast_the_replacement_of_an_engine_core():
    bench = a_pair(HoldfastConfig(max_retries=2))
    for _ in range(2):
        bench.paused_by_fault(0)
        bench.paused(1)
        bench.recovered(0)
        bench.recovered(1)
    bench.lost(1)
    bench.attached(1, pid=9)
    bench.paused(0)
    bench.paused(1)
    bench.recovered(0)
    bench.recovered(1)
    bench.paused_by_fault(0)
    bench.paused(1)
    decision = [e.decision for e in bench.events if e.decision][-1]
    assert (decision.action, decision.tries) == ("retry", 1)


# ---- bounds


def test_of_several_errors_of_one_command_the_first_is_told():
    bench = two_pairs(EXTERNAL)
    for engine in (0, 2):
        bench.paused_by_fault(engine)
        bench.paused(engine + 1)
    bench.retry("all", None)
    for engine, message in ((0, "first"), (1, "first too"), (2, "last"), (3, "last too")):
        bench.aborted(engine, fault=a_fault(engine, message))
    assert bench.all(Settle) == [Settle("all", error=a_fault(0, "first").summary())]


def test_each_keepalive_starts_the_wait_for_the_next():
    bench = Bench(EXTERNAL)
    bench.tick(100.0)
    bench.paused_by_fault()
    times = []
    for _ in range(25):
        if any(map(is_keepalive, bench.tick(KEEPALIVE_S / 10))):
            times.append(bench.now - 1100.0)
    assert times == pytest.approx([KEEPALIVE_S, 2 * KEEPALIVE_S])


def test_of_the_faults_that_are_armed_for_requests_the_latest_are_armed_in_a_replacement():
    bench = Bench(HoldfastConfig())
    for number in range(MAX_POISONS + 2):
        bench.arm(f"arm-{number}", InjectionSpec(phase=Phase.FORWARD, request=f"request-{number}"))
    bench.lost()
    assert bench.all(ReplaceEngine)
    again = [e.message.spec.request for e in bench.attached(pid=9) if isinstance(e, Send)]
    assert again == [f"request-{number}" for number in range(2, MAX_POISONS + 2)]
    assert all(isinstance(e.message, m.ArmFault) for e in bench.all(Send))


def test_retries_of_unknown_errors_are_bounded_without_a_flag():
    intensity = unknown_retry_intensity(HoldfastConfig(retry_window_s=60.0))
    assert intensity.exhausted(0) is None
    assert intensity.exhausted(1) == "1 retries of unknown errors within 60 s did not last (at most 1)"


# ---- the budgets in the status


def test_the_status_lists_the_budgets_on_which_a_try_is_spent_and_when_tries_come_back():
    bench = Bench(HoldfastConfig(max_retries=4, retry_window_s=60.0))
    assert bench.view().budgets == ()
    recover_from_a_fault(bench)
    bench.now += 10.0
    recover_from_a_fault(bench)
    (budget,) = bench.view().budgets
    assert (budget.rung, budget.limit, budget.remaining) == ("retry", 4, 2)
    assert budget.refills_at == (60.0, 70.0)  # the wall clock began with the instance


def test_a_budget_in_the_status_is_full_again_after_its_window():
    bench = Bench(HoldfastConfig(retry_window_s=60.0))
    recover_from_a_fault(bench)
    bench.now += 61.0
    bench.tick()
    assert bench.view().budgets == ()


def test_restarts_of_workers_and_engine_cores_have_budgets_of_their_own_in_the_status():
    bench = Bench(HoldfastConfig(max_worker_restarts=3, max_engine_restarts=2))
    recover_from_a_fault(bench, FaultClass.WORKER_LOST)
    assert [(b.rung, b.remaining) for b in bench.view().budgets] == [("restart-workers", 2)]
    bench.did(bench.instance.lost(0, "killed", bench.now))
    assert [(b.rung, b.remaining) for b in bench.view().budgets] == [("restart-workers", 2), ("restart-engine", 1)]


def test_tries_of_an_open_incident_stay_spent_after_their_window():
    bench = Bench(HoldfastConfig(max_engine_restarts=2, engine_restart_window_s=10.0))
    bench.did(bench.instance.lost(0, "killed", bench.now))
    bench.now += 11.0
    bench.tick()
    assert [(b.remaining, b.refills_at) for b in bench.view().budgets] == [(1, (10.0,))]
