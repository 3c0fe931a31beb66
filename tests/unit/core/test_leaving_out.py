"""The fourth rung: an engine core that cannot be replaced is left out, and the others serve on without it."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict
from holdfast.core.faults.faults import FaultClass
from holdfast.core.policy.ladder import Action, Decision, decide_on_engine
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, Settle
from support.instance_bench import Bench, a_fault

CONFIG = HoldfastConfig(max_engine_restarts=1, engine_restart_window_s=100.0)
NEVER = HoldfastConfig(max_engine_restarts=0)
NO_MORE = Decision(Action.END, "1 engine core restarts within 100 s did not last")


def without_one(config=CONFIG, engines=(0, 1)):
    """Engine 1 was lost more often than it may be."""
    bench = Bench(config, engines=engines)
    for _ in range(config.max_engine_restarts + 1):
        bench.lost(1)
    return bench


# ---- the decision


def test_where_others_serve_on_one_is_left_out_and_the_reason_says_until_when():
    decision = decide_on_engine("it is gone", NO_MORE, 3, CONFIG)
    assert decision.action is Action.LEAVE_OUT
    assert decision.action.rung == 4
    assert decision.reason == f"it is gone; {NO_MORE.reason}; left out, 3 engine cores serve on; next try in 100 s"


def test_where_engine_cores_are_never_restarted_it_is_left_out_for_good():
    assert decide_on_engine("it is gone", NO_MORE, 1, NEVER).reason.endswith("1 engine cores serve on; not tried again")


def test_where_nobody_is_left_or_all_wait_for_it_the_instance_ends():
    assert decide_on_engine("it is gone", NO_MORE, 0, CONFIG).action is Action.END


@pytest.mark.parametrize(("others", "action"), [(1, Action.END), (2, Action.LEAVE_OUT)])
def test_fewer_than_somebody_wants_do_not_serve_on(others, action):
    config = HoldfastConfig(min_engines=2)
    decision = decide_on_engine("it is gone", NO_MORE, others, config)
    assert decision.action is action
    assert action is Action.LEAVE_OUT or "only 1 engine cores would serve (--min-engines 2)" in decision.reason


@pytest.mark.parametrize("policy", ["external", "dry-run"])
def test_who_decides_nothing_unasked_leaves_nobody_out(policy):
    assert decide_on_engine("it is gone", NO_MORE, 3, HoldfastConfig(fault_policy=policy)).action is Action.END


# ---- what follows


def test_one_that_is_lost_too_often_is_left_out_and_the_instance_goes_on():
    bench = without_one()
    assert bench.states(0, 1) == ["healthy", "left-out"]
    assert bench.view(1).state.on_the_wire == "dead"
    assert bench.instance.view().ready
    assert bench.defeat is None
    assert len(bench.all(ReplaceEngine)) == 1
    assert bench.all(LeaveOut) == [LeaveOut(1)]
    assert [e.decision.rung for e in bench.events if e.decision] == [3, 4]
    assert "left out, 1 engine cores serve on" in bench.view(1).reason


def test_whoever_serves_sees_one_more_loss_and_moves_the_requests():
    bench = without_one()
    assert (bench.view(1).restarts, bench.events[-1].kind, bench.events[-1].state) == (2, "engine-lost", "left-out")


def test_one_that_is_still_there_is_killed_with_its_workers():
    bench = Bench(HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=0), engines=(0, 1))
    fault = a_fault(1, fault_class=FaultClass.TRANSIENT)
    bench.faulted(1, fault=fault)
    bench.paused(1)
    assert bench.all(LeaveOut) == [LeaveOut(1, (8, 7), kill=True)]
    assert bench.states(0, 1) == ["healthy", "left-out"]


def test_of_its_workers_those_of_now_are_meant():
    """Its rank has got a new process since."""
    bench = Bench(HoldfastConfig(max_engine_restarts=0), engines=(0, 1))
    bench.faulted(1, fault=a_fault(1, fault_class=FaultClass.WORKER_LOST))
    bench.paused(1)
    bench.recovered(1, replaced=(0,), worker_pids=(80,))
    bench.lost(1)
    assert bench.all(LeaveOut) == [LeaveOut(1, (80,))]
    bench.lost(0)
    assert [end.processes for end in bench.all(End)] == [(8,)]


def test_what_was_asked_of_it_fails_with_the_reason():
    bench = Bench(NEVER, engines=(0, 1))
    bench.pause("pause", 1, soft=True)
    bench.lost(1)
    [settled] = bench.all(Settle)
    assert settled.command_id == "pause"
    assert "left out" in settled.error


def test_the_last_one_that_serves_is_not_left_out():
    bench = without_one()
    for _ in range(2):
        bench.lost(0)
    assert len(bench.all(End)) == 1
    assert "2 serve" not in bench.defeat


def test_in_lockstep_nobody_is_left_out():
    bench = Bench(NEVER, groups=[(0, 1), (2,)])
    bench.lost(0)
    assert bench.defeat is not None


def test_nothing_more_is_heard_of_it():
    bench = without_one()
    assert bench.faulted(1) == bench.paused_by_fault(1) == bench.attached(1) == bench.lost(1) == []
    assert bench.states(0, 1) == ["healthy", "left-out"]


# ---- the way back


def test_when_its_budget_has_come_back_it_is_tried_again():
    bench = without_one()
    assert not [e for e in bench.tick(99.0) if isinstance(e, ReplaceEngine)]
    assert [e.engine_id for e in bench.tick(1.0) if isinstance(e, ReplaceEngine)] == [1]
    bench.attached(1, pid=9)
    assert bench.states(0, 1) == ["healthy", "healthy"]
    assert bench.view(1).reason is None


def test_one_that_comes_to_nothing_again_is_left_out_again():
    bench = without_one()
    for _ in range(3):
        bench.tick(100.0)
        assert bench.states(0, 1) == ["healthy", "restarting"]
        bench.lost(1)
        assert bench.states(0, 1) == ["healthy", "left-out"]
    assert bench.defeat is None


def test_where_it_is_for_good_time_changes_nothing():
    bench = without_one(NEVER)
    assert bench.tick(1e6) == []
    assert bench.states(0, 1) == ["healthy", "left-out"]


@pytest.mark.parametrize("config", [CONFIG, NEVER])
def test_somebody_may_want_it_back_at_once(config):
    bench = without_one(config)
    bench.submit(RestartEngine(command_id="back", engine_id=1))
    order = bench.all(ReplaceEngine)[-1]
    assert (order.engine_id, order.kill) == (1, False), "nothing is there to be killed: its process id may be another's"
    bench.attached(1, pid=9)
    assert bench.states(0, 1) == ["healthy", "healthy"]
    assert bench.all(Settle)[-1] == Settle("back")


def test_a_pause_of_all_is_one_of_those_that_serve():
    bench = without_one()
    bench.pause("pause")
    assert bench.states(0, 1) == ["pausing", "left-out"]
    with pytest.raises(CommandConflict, match="engine 1 is left-out"):
        bench.pause("other", 1)
