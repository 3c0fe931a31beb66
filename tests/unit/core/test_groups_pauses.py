"""Lockstep groups that are paused by operator, softly or hard, and what must not be paused."""

import pytest
from msgspec import UNSET

from holdfast.core.errors import CommandConflict, UnknownEngine
from holdfast.core.faults.faults import FaultClass, unresponsive
from holdfast.core.instance.deadlines import KEEPALIVE_S, SOFT_PAUSE_S
from holdfast.core.protocol.effects import End, Publish, Settle
from holdfast.core.protocol.events import EventKind
from support.groups_bench import LEFT_ALONE, a_pair, orders, paused_by_operator, pauses
from support.instance_bench import AUTO, DEEP, EXTERNAL, Bench, a_fault, is_keepalive, kinds

CANNOT = ("custom all-reduce",)


# ---- pause by operator


def test_a_pause_of_one_engine_pauses_its_group_and_only_it():
    bench = a_pair()
    paused = bench.pause("p", 1)
    assert pauses(paused) == [(0, False), (1, False)]
    assert bench.states(0, 1, 2, 3) == ["pausing", "pausing", "healthy", "healthy"]
    assert {e.event.command_id for e in paused if isinstance(e, Publish)} == {"p"}


def test_a_pause_without_a_name_pauses_everybody():
    bench = a_pair()
    assert [engine for engine, _ in pauses(bench.pause())] == [0, 1, 2, 3]


def test_a_pause_ends_when_every_engine_of_every_group_stands():
    bench = a_pair()
    bench.pause("p")
    for engine in (0, 2, 3):
        bench.paused(engine)
    assert bench.all(Settle) == []
    bench.paused(1)
    assert bench.all(Settle) == [Settle("p")]
    assert all(bench.view(e).paused_by_operator for e in range(4))


def test_an_idle_instance_pauses_and_resumes_like_a_busy_one():
    bench = a_pair()
    bench.pause("p", soft=True)
    for engine in range(4):
        bench.paused(engine, broken=False)
    bench.resume("r")
    for engine in range(4):
        bench.recovered(engine)
    assert bench.all(Settle) == [Settle("p"), Settle("r")]
    assert bench.states(0, 1, 2, 3) == ["healthy"] * 4


def test_a_pause_while_somebody_of_the_group_is_unwell_is_a_conflict_and_changes_nothing():
    bench = a_pair()
    bench.faulted(0)
    before = bench.instance.view()
    for engines in ((1,), (2, 0), ()):
        with pytest.raises(CommandConflict, match="cannot be paused now"):
            bench.pause("p", *engines)
    assert bench.instance.view() == before


def test_a_pause_of_what_is_already_paused_is_a_conflict_that_says_the_state():
    with pytest.raises(CommandConflict, match="engine 0 is paused, it cannot be paused now") as caught:
        paused_by_operator().pause("again", 1)
    assert caught.value.state == "paused"


def test_an_engine_that_does_not_exist_cannot_be_paused():
    bench = a_pair()
    with pytest.raises(UnknownEngine, match="known: 0, 1, 2, 3"):
        bench.pause("p", 0, 9)
    assert bench.states(0) == ["healthy"]


def test_the_id_of_a_pause_under_way_is_refused_whatever_it_is_for():
    bench = a_pair()
    bench.pause("same", 0)
    for order in (lambda: bench.pause("same", 2), lambda: bench.resume("same", 0), lambda: bench.arm("same")):
        with pytest.raises(CommandConflict, match="the id same is already under way"):
            order()


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_nothing_is_decided_over_a_pause_by_operator_however_long_it_lasts(config):
    bench = paused_by_operator(config)
    for _ in range(20):
        assert [e for e in bench.tick(config.engine_recovery_timeout_s) if not is_keepalive(e)] == []
    assert bench.states(0, 1) == ["paused", "paused"]
    assert bench.view(0).reason == "paused by operator; waiting for resume"


def test_after_a_long_pause_by_operator_the_recovery_timeout_begins_anew():
    bench = paused_by_operator(EXTERNAL)
    bench.tick(1e6)
    bench.resume("resume", 0)
    bench.aborted(0)
    bench.aborted(1)
    assert [e for e in bench.tick(EXTERNAL.engine_recovery_timeout_s - 0.1) if not is_keepalive(e)] == []
    assert kinds(bench.tick(0.1))[-1] == "End"


def test_broken_collectives_that_are_reported_during_a_pause_by_operator_are_no_fault():
    bench = a_pair()
    bench.pause("p", 0)
    assert bench.faulted(0, fault=a_fault(0, "broken", FaultClass.COMMUNICATOR)) == []
    assert bench.states(0, 1) == ["pausing", "pausing"]
    for engine in (0, 1):
        bench.paused_by_fault(engine, fault=LEFT_ALONE, broken=True)
    assert [(bench.view(e).fault_info, bench.view(e).faults) for e in (0, 1)] == [(UNSET, 0)] * 2
    assert EventKind.FAULT_REPORTED not in {e.kind for e in bench.events}
    assert bench.faulted(1, fault=LEFT_ALONE) == []
    assert bench.all(Settle) == [Settle("p")]


def test_a_pause_by_operator_whose_engine_does_not_stand_is_not_said_to_have_a_fault():
    bench = a_pair()
    bench.pause("p", 0)
    bench.paused(0)
    bench.faulted(1, fault=LEFT_ALONE)
    bench.tick(AUTO.containment_timeout_s)
    assert bench.defeat.startswith("engine 1 was told to pause and did not pause within 30 s; ")
    assert bench.all(Settle) == [Settle("p", error=bench.defeat)]


def test_a_fault_during_a_pause_by_operator_is_reported_and_waits_for_the_operator():
    bench = a_pair()
    bench.pause("p", 0)
    bench.faulted(1)
    bench.paused(0)
    bench.paused_by_fault(1)
    assert bench.all(Settle) == [Settle("p")]
    assert orders(bench) == []
    assert bench.view(1).fault_info == a_fault(1).summary()


def test_a_worker_that_is_lost_while_paused_by_operator_is_replaced_at_the_resume():
    bench = paused_by_operator()
    assert kinds(bench.faulted(1, fault=DEEP)) == ["fault-reported", "decision-made"]
    assert bench.view(0).reason == "paused by operator; waiting for resume"
    assert orders(bench) == []
    bench.resume("resume", 0)
    assert [o.replace for o in orders(bench)] == [{1: (0,)}]


def test_an_engine_core_that_does_not_answer_ends_even_a_pause_by_operator():
    bench = paused_by_operator()
    assert kinds(bench.faulted(1, fault=unresponsive(1, "no word")))[-1] == "End"


# ---- soft


def test_a_soft_pause_waits_for_a_step_boundary_and_then_becomes_a_hard_one():
    bench = a_pair()
    assert pauses(bench.pause("p", 0, soft=True)) == [(0, True), (1, True)]
    bench.paused(0, broken=False)
    assert pauses(bench.tick(SOFT_PAUSE_S - 0.1)) == []
    assert pauses(bench.tick(0.1)) == [(0, False), (1, False)]
    assert bench.tick(1.0) == []
    bench.paused(1)
    bench.resume("resume", 0)
    assert [o.rebuild for o in orders(bench)] == [True]


def test_a_soft_pause_that_came_to_a_stand_never_hardens():
    bench = paused_by_operator(soft=True)
    assert pauses(bench.tick(100.0)) == []


def test_before_a_soft_pause_has_hardened_a_broken_collective_is_a_fault():
    bench = a_pair()
    bench.pause("p", 0, soft=True)
    assert kinds(bench.faulted(1, fault=LEFT_ALONE)) == ["fault-reported"]


def test_once_a_soft_pause_has_hardened_a_broken_collective_is_none():
    bench = a_pair()
    bench.pause("p", 0, soft=True)
    bench.tick(SOFT_PAUSE_S)
    assert bench.faulted(1, fault=LEFT_ALONE) == []


# ---- what cannot be rebuilt


def an_unrebuildable_pair(config=AUTO):
    bench = a_pair(config, attached=False)
    for engine in range(4):
        bench.attached(engine, unrebuildable=CANNOT if engine == 1 else ())
    return bench


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
def test_a_group_whose_broken_collectives_cannot_be_rebuilt_ends_and_says_what_cannot(config):
    bench = an_unrebuildable_pair(config)
    bench.faulted(0)
    bench.paused_by_fault(0, broken=True)
    assert isinstance(bench.paused(1)[-1], End)
    assert "cannot be rebuilt in place (custom all-reduce)" in bench.defeat
    assert "boom" in bench.defeat


def test_what_one_engine_cannot_rebuild_is_shown_with_it():
    assert [an_unrebuildable_pair().view(e).unrebuildable for e in (0, 1)] == [(), CANNOT]


@pytest.mark.parametrize("soft", [True, False])
def test_nobody_pauses_by_operator_a_group_that_could_not_go_on(soft):
    bench = an_unrebuildable_pair()
    with pytest.raises(CommandConflict, match="could not resume after a pause"):
        bench.pause("p", 0, soft=soft)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_an_engine_of_several_ranks_that_could_not_be_rebuilt_is_paused_softly_or_not_at_all():
    bench = Bench(groups=[(0,)], attached=False)
    bench.attached(0, ranks=2, unrebuildable=CANNOT)
    with pytest.raises(CommandConflict, match="a soft pause breaks nothing"):
        bench.pause("p", 0)
    bench.pause("p", 0, soft=True)
    assert pauses(bench.tick(SOFT_PAUSE_S)) == []  # it must not harden
    bench.paused(0, broken=False)
    bench.resume("r", 0)
    assert [o.rebuild for o in orders(bench)] == [False]


def test_an_engine_of_one_rank_has_nobody_whom_a_pause_could_break():
    bench = Bench(groups=[(0,)], attached=False)
    bench.attached(0, unrebuildable=CANNOT)
    bench.pause("p", 0)
    bench.paused(0, broken=False)
    assert bench.all(Settle) == [Settle("p")]


# ---- somebody still lives


def test_engines_that_stand_are_told_so_again_and_again_and_nobody_else_is():
    bench = paused_by_operator()
    for _ in range(3):
        keepalives = bench.tick(KEEPALIVE_S)
        assert [e.engine_id for e in keepalives if is_keepalive(e)] == [0, 1]
    assert bench.tick(KEEPALIVE_S / 2) == []


def test_a_keepalive_is_void_in_another_epoch():
    bench = paused_by_operator()
    bench.resume("r", 0)
    bench.recovered(0)
    bench.recovered(1)
    bench.pause("p", 0)
    bench.paused(0)
    bench.paused(1)
    assert [e.message.epoch for e in bench.tick(KEEPALIVE_S)] == [1, 1]


def test_who_is_paused_gets_keepalives_while_the_peer_is_still_on_its_way():
    bench = a_pair()
    bench.faulted(0)
    bench.paused_by_fault(0)
    assert [e.engine_id for e in bench.tick(KEEPALIVE_S) if is_keepalive(e)] == [0]


def test_a_keepalive_is_no_event():
    bench = paused_by_operator()
    before = bench.instance.view()
    bench.tick(KEEPALIVE_S)
    assert bench.instance.view() == before
