"""Worker restarts: who is sick, who gets a new process, how often, and who may ask for it."""

import msgspec
import pytest

from holdfast.core.errors import BadCommand, CommandConflict, UnknownEngine
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import Settle
from holdfast.core.protocol.events import EventKind
from support.groups_bench import LEFT_ALONE, a_pair, orders
from support.instance_bench import AUTO, EXTERNAL, Bench, a_fault, a_loss, kinds


def lose(bench, engine=0, rank=0):
    """A rank's process ends, and its lockstep group comes to a stand."""
    bench.faulted(engine, fault=a_loss(engine, rank))
    bench.paused_by_fault(engine, fault=a_loss(engine, rank))


def restarted(bench):
    return [order.replace for order in orders(bench)]


# ---- who gets a new process


def test_a_lost_rank_is_replaced_and_its_engine_only():
    bench = a_pair()
    lose(bench, 1, rank=0)
    bench.paused(0)
    assert [(o.engine_ids, o.replace) for o in orders(bench)] == [((0, 1), {1: (0,)})]


def test_ranks_that_are_lost_together_are_replaced_together():
    bench = a_pair()
    bench.faulted(0, fault=a_loss(0, 1))
    bench.faulted(0, fault=a_loss(0, 0))
    lose(bench, 1, rank=0)
    bench.paused_by_fault(0, fault=a_loss(0, 1))
    assert restarted(bench) == [{0: (0, 1), 1: (0,)}]


def test_a_rank_that_is_lost_again_in_the_recovery_is_replaced_in_the_next_one():
    bench = Bench()
    lose(bench)
    bench.faulted(fault=a_loss(rank=1))
    bench.aborted()
    assert restarted(bench) == [{0: (0,)}, {0: (0, 1)}]


def test_a_rank_that_was_replaced_is_not_sick_any_more():
    bench = Bench()
    lose(bench)
    bench.recovered(replaced=(0,))
    assert bench.view().worker_restarts == 1
    bench.paused_by_fault()
    assert restarted(bench) == [{0: (0,)}, {}]


def test_a_loss_that_overtakes_the_report_of_the_recovery_is_replaced_in_the_next_one():
    bench = Bench()
    bench.paused_by_fault()
    bench.faulted(fault=a_loss())
    bench.recovered()
    bench.paused_by_fault(fault=a_loss())
    assert restarted(bench) == [{}, {0: (0,)}]


def test_a_device_error_of_no_known_rank_replaces_every_rank_of_its_engine():
    bench = Bench(attached=False)
    bench.attached(ranks=2)
    bench.paused_by_fault(fault=a_fault(message="illegal memory access", fault_class=FaultClass.DEVICE, rank=None))
    assert restarted(bench) == [{0: (0, 1)}]


def test_external_an_instruction_to_retry_replaces_who_is_lost():
    bench = Bench(EXTERNAL)
    lose(bench)
    assert restarted(bench) == []
    bench.retry("cmd")
    assert restarted(bench) == [{0: (0,)}]


# ---- how often


def test_a_restart_that_fails_on_both_sides_of_a_group_has_failed_once():
    bench = a_pair()
    lose(bench, 0)
    bench.paused(1)
    for _ in range(2):
        bench.aborted(0)
        bench.aborted(1)
    assert len(orders(bench)) == 2  # the second failure is followed by a pause
    assert "failed 2 times" in bench.view(0).reason


def test_after_a_pause_between_tries_the_tick_decides_again():
    bench = Bench()
    lose(bench)
    bench.aborted()
    assert kinds(bench.aborted())[-1] == "decision-made"
    assert not {"BeginRecovery", "decision-made"} & set(kinds(bench.tick(0.9)))
    assert kinds(bench.tick(0.2)) == ["decision-made", "BeginRecovery", "recovery-started"]
    bench.recovered(replaced=(0,))
    assert bench.states(0) == ["healthy"]


def test_a_restart_that_worked_forgives_those_that_failed():
    bench = Bench()
    lose(bench)
    bench.aborted()
    bench.recovered(replaced=(0,))
    lose(bench)
    bench.aborted()
    assert len(orders(bench)) == 4


def test_a_new_process_may_take_as_long_as_it_takes_to_load():
    bench = Bench()
    lose(bench)
    bound_s = AUTO.containment_timeout_s + AUTO.drain_timeout_s + AUTO.worker_start_timeout_s
    bench.tick(bound_s - 0.1)
    assert bench.defeat is None
    bench.tick(0.1)
    assert bench.defeat.startswith("engine 0 did not finish its recovery in time; ")


def test_a_node_may_take_as_long_to_come_back_as_is_allowed_beside_the_start():
    bench = Bench(msgspec.structs.replace(AUTO, node_count=2))
    lose(bench)
    start_s = AUTO.containment_timeout_s + AUTO.drain_timeout_s + AUTO.worker_start_timeout_s
    bench.tick(start_s + AUTO.node_return_timeout_s - 0.1)
    assert bench.defeat is None
    bench.tick(0.1)
    assert bench.defeat is not None


# ---- asked for


@pytest.mark.parametrize("config", [AUTO, EXTERNAL])
@pytest.mark.parametrize(("ranks", "replaced"), [((), (0,)), ((0,), (0,))])
def test_a_restart_that_is_asked_for_ends_when_everybody_is_healthy(config, ranks, replaced):
    bench = a_pair(config)
    bench.restart_workers("restart", 1, ranks)
    assert bench.states(0, 1) == ["pausing", "pausing"]
    bench.paused(0)
    bench.paused(1)
    assert restarted(bench) == [{1: replaced}]
    bench.recovered(0)
    assert bench.all(Settle) == []
    bench.recovered(1, replaced=replaced)
    assert bench.all(Settle) == [Settle("restart")]
    assert [bench.view(e).worker_restarts for e in (0, 1)] == [0, 1]
    assert bench.states(0, 1, 2) == ["healthy"] * 3


def test_broken_collectives_of_a_restart_that_is_asked_for_are_no_fault():
    bench = a_pair()
    bench.restart_workers("restart", 1)
    assert bench.faulted(0, fault=LEFT_ALONE) == []
    bench.paused_by_fault(0, fault=LEFT_ALONE, broken=True)
    bench.paused_by_fault(1, fault=LEFT_ALONE, broken=True)
    assert EventKind.FAULT_REPORTED not in {e.kind for e in bench.events}
    assert restarted(bench) == [{1: (0,)}]


def test_a_restart_that_is_asked_for_and_fails_says_so_and_is_tried_again():
    bench = Bench()
    bench.restart_workers("restart")
    bench.paused()
    bench.aborted()
    assert bench.all(Settle) == [Settle("restart", error=a_fault(message="again").summary())]
    assert restarted(bench) == [{0: (0,)}] * 2


@pytest.mark.parametrize(
    ("engine", "ranks", "error"), [(9, (), UnknownEngine), (0, (1,), BadCommand), (0, (-1,), BadCommand)]
)
def test_a_restart_of_who_does_not_exist_is_refused_and_changes_nothing(engine, ranks, error):
    bench = a_pair()
    before = bench.instance.view()
    with pytest.raises(error):
        bench.restart_workers("restart", engine, ranks)
    assert bench.instance.view() == before


def test_a_restart_of_a_group_that_is_not_healthy_is_a_conflict():
    bench = a_pair(EXTERNAL)
    bench.faulted(0)
    with pytest.raises(CommandConflict):
        bench.restart_workers("restart", 1)


def test_a_restart_of_who_could_not_go_on_is_a_conflict_that_says_why():
    bench = Bench(attached=False)
    bench.attached(ranks=2, unrebuildable=("custom all-reduce",))
    with pytest.raises(CommandConflict, match="custom all-reduce"):
        bench.restart_workers("restart")


def test_standbys_are_in_the_view_and_their_changes_among_the_events():
    bench = Bench()
    standbys = m.Standbys(wanted=2, ready=1, memory_bytes=2**20)
    said = bench.observe(m.StandbysChanged(engine_id=0, standbys=standbys))
    assert kinds(said) == ["standbys-changed"]
    assert said[0].event.reason == "1 of 2 ready, 1 MiB"
    assert bench.view().standbys == standbys
