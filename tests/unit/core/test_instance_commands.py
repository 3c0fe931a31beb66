"""What somebody asks of an instance, what is due in time, and how it ends."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict, UnknownEngine
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import End, Send, Settle
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState
from support.instance_bench import AUTO, EXTERNAL, SPEC, Bench, kinds

# ---- instructions


def test_two_commands_at_once_are_a_conflict_that_says_the_state():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("first")
    before = bench.instance.view()
    with pytest.raises(CommandConflict, match="first is already under way") as caught:
        bench.retry("second")
    assert caught.value.state == "recovering"
    assert bench.instance.view() == before


@pytest.mark.parametrize("state", ["starting", "healthy", "faulted"])
def test_a_retry_of_what_is_not_paused_is_a_conflict_that_says_the_state(state):
    bench = Bench(EXTERNAL, attached=state != "starting")
    if state == "faulted":
        bench.faulted()
    with pytest.raises(CommandConflict, match="there is nothing to retry") as caught:
        bench.retry()
    assert caught.value.state == state


def test_an_instruction_for_an_engine_that_does_not_exist_names_those_that_do():
    bench = Bench(engines=(0, 3))
    with pytest.raises(UnknownEngine, match="known: 0, 3"):
        bench.retry(engine=1)
    with pytest.raises(UnknownEngine):
        bench.arm(spec=InjectionSpec(phase=Phase.FORWARD, engine_id=1))


def test_an_id_that_is_under_way_is_refused_whatever_it_is_for():
    bench = Bench(EXTERNAL)
    bench.arm("same")
    bench.paused_by_fault()
    for order in (bench.arm, bench.retry):
        with pytest.raises(CommandConflict, match="the id same is already under way"):
            order("same")


# ---- arming


def test_arming_is_sent_and_ends_with_its_answer():
    bench = Bench()
    assert bench.arm("x") == [Send(0, m.ArmFault(command_id="x", spec=SPEC))]
    answer = m.EngineAnswered(engine_id=0, command_id="x")
    assert kinds(bench.observe(answer)) == ["fault-armed", "Settle"]
    assert bench.observe(answer) == []


def test_arming_that_was_refused_says_why_and_is_no_event():
    bench = Bench()
    bench.arm("x")
    assert bench.observe(m.EngineAnswered(engine_id=0, command_id="x", refused="no rank 7")) == [
        Settle("x", error="no rank 7", refused=True)
    ]


def test_arming_without_an_answer_ends_in_its_deadline_and_a_late_answer_changes_nothing():
    bench = Bench()
    bench.arm("x")
    assert bench.tick(AUTO.drain_timeout_s - 0.1) == []
    assert bench.tick(0.1) == [Settle("x", error="engine 0 did not answer in time")]
    assert bench.observe(m.EngineAnswered(engine_id=0, command_id="x")) == []


# ---- time, and ends


def test_a_fault_after_which_the_engine_never_pauses_ends_in_a_deadline():
    bench = Bench()
    bench.faulted()
    assert bench.tick(AUTO.containment_timeout_s - 0.1) == []
    assert kinds(bench.tick(0.1)) == ["decision-made", "instance-defeated", "Send", "End"]
    assert "did not pause within 30 s" in bench.instance.view().defeat


def test_a_recovery_that_never_ends_ends_in_a_deadline_and_its_command_with_it():
    bench = Bench()
    bench.paused_by_fault()
    assert bench.tick(AUTO.containment_timeout_s + AUTO.drain_timeout_s - 0.1) == []
    ended = bench.tick(0.1)
    assert kinds(ended) == ["decision-made", "Settle", "instance-defeated", "Send", "End"]
    assert ended[1].command_id == "own-1"


def test_of_two_deadlines_in_one_tick_one_ends_the_instance():
    bench = Bench(engines=(0, 1))
    bench.faulted(0)
    bench.faulted(1)
    bench.tick(1e3)
    assert len(bench.all(End)) == 1
    assert [e.kind for e in bench.events].count(EventKind.INSTANCE_DEFEATED) == 1


def test_a_healthy_instance_has_no_deadline():
    assert Bench().tick(1e9) == []


NOT_REPLACED = HoldfastConfig(max_engine_restarts=0)


@pytest.mark.parametrize("state", ["starting", "healthy", "faulted", "recovering"])
def test_an_engine_core_that_is_lost_ends_an_instance_without_restarts_whatever_it_was_doing(state):
    bench = Bench(NOT_REPLACED, attached=state != "starting")
    if state in ("faulted", "recovering"):
        bench.faulted()
    if state == "recovering":
        bench.paused_by_fault()
    assert bench.view().state == state
    assert kinds(bench.lost())[-3:] == ["instance-defeated", "Send", "End"]
    assert (bench.view().state, bench.instance.view().ready) == (EngineState.DEAD, False)
    assert bench.defeat.startswith("engine core 0 was lost: killed by signal 9")


def test_the_end_settles_the_commands_of_every_engine():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.paused_by_fault(0)
    bench.retry("zero", 0)
    bench.arm("armed", InjectionSpec(phase=Phase.FORWARD, engine_id=1))
    bench.lost(1)
    assert {s.command_id for s in bench.all(Settle)} == {"zero", "armed"}


# ---- what an engine core cannot be restarted for


def test_an_engine_core_is_not_restarted_while_a_command_is_under_way():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("first")
    with pytest.raises(CommandConflict, match="command first is already under way on engine core 0"):
        bench.submit(RestartEngine(command_id="restart", engine_id=0))
    assert bench.states(0) == ["recovering"]


def test_an_engine_core_is_not_restarted_where_its_replacement_could_not_join_the_group():
    bench = Bench(groups=[(0, 1)], attached=False)
    for engine in (0, 1):
        bench.attached(engine, unrebuildable=("custom all-reduce",))
    with pytest.raises(CommandConflict, match="engine core 1 cannot be replaced: custom all-reduce"):
        bench.submit(RestartEngine(command_id="restart", engine_id=1))
    assert bench.states(0, 1) == ["healthy", "healthy"]
