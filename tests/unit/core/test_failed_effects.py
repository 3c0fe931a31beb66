"""An effect that could not be carried out is a fault like any other, and no wait is without a bound."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.config import HoldfastConfig
from holdfast.core.instance.deadlines import REPLACEMENT_MARGIN_S, replacement_bound_s
from holdfast.core.instance.failed_effects import TRY_AGAIN_AFTER_S
from holdfast.core.instance.processes import COORDINATOR, api_server
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import (
    BeginRecovery,
    CloseRendezvous,
    End,
    LeaveOut,
    Publish,
    ReplaceEngine,
    ReplaceProcess,
    Send,
    Settle,
)
from holdfast.core.states import EngineState
from support.instance_bench import Bench, kinds

CONFIG = HoldfastConfig(max_retries=2, max_engine_restarts=2, max_ranks_out="100%", max_api_server_restarts=2)
WHY = "Too many open files"


def failed(bench, effect, why=WHY):
    return bench.did(bench.instance.effect_failed(effect, why, bench.now))


def test_a_recovery_that_could_not_begin_has_failed_and_the_next_one_is_tried():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.paused_by_fault()
    [first] = bench.all(BeginRecovery)
    effects = failed(bench, first)
    assert "recovery-failed" in kinds(effects)
    assert [s for s in effects if isinstance(s, Settle)] == [
        Settle(first.command_id, error=f"RecoveryFailed in engine 0: the recovery could not be begun: {WHY}")
    ]
    bench.tick(5.0)
    second = bench.all(BeginRecovery)[-1]
    assert second.epoch == first.epoch + 1
    bench.recovered()
    assert bench.states(0) == ["healthy"]


def test_a_recovery_that_never_begins_climbs_the_ladder_at_once():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.paused_by_fault()
    for _ in range(20):
        if bench.all(ReplaceEngine):
            break
        failed(bench, bench.all(BeginRecovery)[-1])
        bench.tick(30.0)
    assert bench.states(0) == ["restarting"]


def test_in_lockstep_the_recovery_fails_for_every_engine_core_and_the_rendezvous_is_closed():
    bench = Bench(CONFIG, groups=[(0, 1)])
    bench.faulted(0)
    bench.paused_by_fault(0, broken=True)
    bench.paused(1)
    [first] = bench.all(BeginRecovery)
    effects = failed(bench, first)
    assert effects[0] == CloseRendezvous((0, 1), first.epoch)
    assert kinds(effects).count("recovery-failed") == 2


def test_the_failure_of_an_older_recovery_changes_nothing():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.paused_by_fault()
    [first] = bench.all(BeginRecovery)
    bench.recovered()
    bench.faulted()
    bench.paused_by_fault()
    assert failed(bench, first) == []


def test_a_replacement_that_could_not_be_started_is_tried_again_and_what_is_left_ends_first():
    bench = Bench(CONFIG, engines=(0, 1))
    bench.faulted(0)
    bench.tick(CONFIG.containment_timeout_s)
    [first] = bench.all(ReplaceEngine)
    assert first.kill
    assert failed(bench, first) == []
    assert bench.tick(TRY_AGAIN_AFTER_S - 0.1) == []
    [second] = [e for e in bench.tick(0.1) if isinstance(e, ReplaceEngine)]
    assert second.kill
    assert second.processes == first.processes
    assert f"its replacement could not be started: {WHY}" in bench.view(0).reason


def test_replacements_that_never_start_use_up_the_budget():
    bench = Bench(CONFIG)
    bench.lost()
    for _ in range(CONFIG.max_engine_restarts + 1):
        if bench.defeat is None:
            failed(bench, bench.all(ReplaceEngine)[-1])
            bench.tick(60.0)
    assert bench.defeat is not None
    assert WHY in bench.defeat


def test_the_failure_to_start_is_no_news_once_the_replacement_serves():
    bench = Bench(CONFIG)
    bench.lost()
    [order] = bench.all(ReplaceEngine)
    bench.attached(0, pid=99)
    assert failed(bench, order) == []
    assert bench.states(0) == ["healthy"]


def test_the_bound_of_a_replacement_counts_again_after_a_failed_start():
    bench = Bench(CONFIG)
    bench.lost()
    failed(bench, bench.all(ReplaceEngine)[-1])
    bench.tick(TRY_AGAIN_AFTER_S)
    assert bench.tick(CONFIG.engine_start_timeout_s) == []
    bench.tick(REPLACEMENT_MARGIN_S + 60.0)
    assert "its replacement did not report in time" in bench.view(0).reason


def test_what_is_left_of_a_left_out_engine_core_ends_before_its_next_start():
    config = HoldfastConfig(max_engine_restarts=1, max_ranks_out="100%", engine_restart_window_s=100.0)
    bench = Bench(config, engines=(0, 1))
    for pid in itertools.count(50):
        bench.lost(1)
        if bench.all(LeaveOut):
            break
        bench.attached(1, pid=pid)
    [order] = bench.all(LeaveOut)
    assert failed(bench, order) == []
    for _ in range(100):
        bench.tick(10.0)
        if bench.view(1).state is EngineState.RESTARTING:
            break
    assert bench.all(ReplaceEngine)[-1].processes == order.processes != ()


def test_a_process_whose_replacement_could_not_be_started_is_tried_again_and_then_ends_the_instance():
    bench = Bench(CONFIG)
    bench.did(bench.instance.process_attached(COORDINATOR, 5))
    bench.did(bench.instance.process_lost(COORDINATOR, "exit code -9", bench.now))
    for number in range(CONFIG.max_api_server_restarts):
        assert failed(bench, bench.all(ReplaceProcess)[-1]) == []
        assert len(bench.all(ReplaceProcess)) == number + 1
        assert bench.tick(TRY_AGAIN_AFTER_S - 0.1) == []
        bench.tick(60.0)
    assert len(bench.all(ReplaceProcess)) == CONFIG.max_api_server_restarts
    assert WHY in bench.defeat


@pytest.mark.parametrize("kind", [Send, Publish, Settle, CloseRendezvous, End])
def test_effects_with_a_bound_of_their_own_need_nothing_more(kind):
    bench = Bench(CONFIG, engines=(0, 1))
    effects = {
        Send: Send(0, m.EndEngine(command_id="c", reason="r")),
        Publish: bench.all(Publish)[-1],
        Settle: Settle("c"),
        CloseRendezvous: CloseRendezvous((0,), 0),
        End: End("r"),
    }
    assert failed(bench, effects[kind]) == []


def test_after_the_end_nothing_follows_from_a_failed_effect():
    bench = Bench(HoldfastConfig(max_engine_restarts=0))
    bench.lost()
    assert bench.defeat is not None
    assert failed(bench, ReplaceEngine(0, 0.0, known_at=1)) == []


# ---- no wait without a bound


def test_a_replacement_that_never_reports_is_lost_after_its_bound():
    bench = Bench(CONFIG)
    bench.lost()
    [order] = bench.all(ReplaceEngine)
    bound_s = replacement_bound_s(order.after_s, CONFIG)
    assert bound_s == order.after_s + CONFIG.engine_start_timeout_s + REPLACEMENT_MARGIN_S
    assert bench.tick(bound_s - 0.1) == []
    assert len([e for e in bench.tick(0.1) if isinstance(e, ReplaceEngine)]) == 1
    assert "its replacement did not report in time" in bench.view(0).reason


@pytest.mark.parametrize("name", [COORDINATOR, api_server(1)])
def test_a_process_whose_replacement_never_reports_is_lost_after_its_bound(name):
    bench = Bench(CONFIG)
    bench.did(bench.instance.process_attached(name, 5))
    bench.did(bench.instance.process_lost(name, "exit code -9", bench.now))
    bound_s = replacement_bound_s(bench.all(ReplaceProcess)[-1].after_s, CONFIG)
    assert bench.tick(bound_s - 0.1) == []
    assert [e.process for e in bench.tick(0.1) if isinstance(e, ReplaceProcess)] == [name]


def test_two_processes_that_are_late_together_end_the_instance_once():
    bench = Bench(HoldfastConfig(max_api_server_restarts=1))
    for name in (COORDINATOR, api_server(1)):
        bench.did(bench.instance.process_attached(name, 5))
        bench.did(bench.instance.process_lost(name, "exit code -9", bench.now))
    bench.tick(10_000.0)
    assert len(bench.all(End)) == 1


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("lost"), st.integers(0, 1)),
        st.tuples(st.just("fault"), st.integers(0, 1)),
        st.tuples(st.just("paused"), st.integers(0, 1)),
        st.tuples(st.just("recovered"), st.integers(0, 1)),
        st.tuples(st.just("attached"), st.integers(0, 1)),
        st.tuples(st.just("process"), st.integers(0, 1)),
        st.tuples(st.just("returned"), st.integers(0, 1)),
        st.tuples(st.just("failed"), st.integers(0, 5)),
        st.tuples(st.just("tick"), st.integers(0, 40)),
    ),
    max_size=30,
)


def waiting(view):
    """Whether an engine core or a process waits for something; a left-out engine core waits for its next start."""
    rest = {EngineState.HEALTHY, EngineState.DEAD, EngineState.LEFT_OUT}
    waits = any(e.state not in rest for e in view.engines) or any(p.pid is None for p in view.processes)
    return waits and view.defeat is None


LONGEST_WAIT_S = replacement_bound_s(CONFIG.engine_restart_window_s, CONFIG) + 100.0


@settings(max_examples=300, deadline=None)
@given(story=happenings, groups=st.sampled_from([[(0,), (1,)], [(0, 1)], [(0,)]]))
def test_whatever_fails_no_engine_core_and_no_process_waits_without_a_bound(story, groups):
    bench, pids = Bench(CONFIG, groups=groups), itertools.count(100)
    known = {e for group in groups for e in group}
    for what, number in story:
        match what:
            case "lost" if number in known:
                bench.lost(number)
            case "fault" if number in known:
                bench.faulted(number)
            case "paused" if number in known:
                bench.paused_by_fault(number, broken=True)
            case "recovered" if number in known:
                bench.recovered(number)
            case "attached" if number in known:
                bench.attached(number, pid=next(pids))
            case "process":
                bench.did(bench.instance.process_lost(api_server(number), "gone", bench.now))
            case "returned":
                bench.did(bench.instance.process_returned(api_server(number), bench.now, 7))
            case "failed" if number < len(bench.effects):
                failed(bench, bench.effects[-1 - number])
            case "tick":
                bench.tick(float(number))
    moved_at, seen = bench.now, bench.instance.view().sequence
    for _ in range(200):
        bench.tick(100.0)
        if (view := bench.instance.view()).sequence != seen or not waiting(view):
            moved_at, seen = bench.now, view.sequence
        assert bench.now - moved_at <= LONGEST_WAIT_S
    assert [e.sequence for e in bench.events] == list(range(1, len(bench.events) + 1))
