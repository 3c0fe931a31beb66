"""An engine core whose process is gone: another one takes its place, or the instance ends."""

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict
from holdfast.core.faults.faults import FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import BeginRecovery, CloseRendezvous, Publish, ReplaceEngine, Send, Settle
from holdfast.core.states import EngineState
from support.instance_bench import Bench, a_fault, kinds
from support.ladder_world import World

CONFIG = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)


def lost(bench, engine=0):
    bench.now += 1.0
    return bench.lost(engine)


def test_a_lost_engine_core_is_replaced_and_the_instance_goes_on():
    bench = Bench(CONFIG, engines=(0, 1))
    effects = lost(bench, 1)
    assert kinds(effects)[-3:] == ["CloseRendezvous", "engine-lost", "ReplaceEngine"]
    assert bench.states(0, 1) == ["healthy", "restarting"]
    assert bench.view(1).state.on_the_wire == "unhealthy"
    assert bench.instance.view().ready
    assert bench.defeat is None


def test_one_engine_alone_makes_no_progress_until_another_has_taken_its_place():
    bench = Bench(CONFIG)
    lost(bench)
    assert not bench.instance.view().ready
    bench.now += 20.0
    bench.attached(0, pid=8)
    assert bench.view().state is EngineState.HEALTHY
    assert (bench.view().pid, bench.view().restarts, bench.view().epoch) == (8, 1, 0)
    assert bench.events[-1].kind == "engine-restarted"
    assert bench.events[-1].interruption_s == 20.0


def test_nothing_of_the_dead_process_is_heard_any_more():
    bench = Bench(CONFIG)
    lost(bench)
    assert bench.attached(0, pid=7) == []  # it said that before it died
    assert bench.faulted() == bench.paused_by_fault() == bench.recovered() == []
    assert bench.view().state is EngineState.RESTARTING


def test_a_replacement_waits_for_those_who_serve_and_for_the_dead_ones_workers():
    bench = Bench(CONFIG)
    [order] = [e for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert order == ReplaceEngine(0, after_s=0.0, known_at=bench.events[-1].sequence, processes=(8,))


def test_an_engine_core_may_be_lost_in_the_middle_of_a_recovery():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.paused_by_fault()
    assert bench.view().state is EngineState.RECOVERING
    lost(bench)
    assert bench.view().state is EngineState.RESTARTING
    bench.attached(0, pid=8)
    bench.faulted()
    bench.paused_by_fault()
    bench.recovered()
    assert bench.view().state is EngineState.HEALTHY


def test_a_command_on_a_lost_engine_core_ends_with_the_reason():
    bench = Bench(CONFIG, engines=(0, 1))
    bench.pause("pause", 1, soft=True)
    bench.arm("arm", bench_spec(1))
    lost(bench, 1)
    error = "engine core 1 was lost: killed by signal 9"
    assert bench.all(Settle) == [Settle("pause", error=error), Settle("arm", error=error)]


def bench_spec(engine):
    from holdfast.core.faults.faults import Phase
    from holdfast.core.faults.injection import InjectionSpec

    return InjectionSpec(phase=Phase.FORWARD, engine_id=engine)


def test_tries_pause_longer_and_longer_and_end_in_the_end_of_the_instance():
    bench = Bench(CONFIG)
    pauses = []
    for _ in range(3):
        pauses += [e.after_s for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert pauses == [0.0, 1.0, 2.0]
    assert kinds(lost(bench))[-1] == "End"
    assert bench.defeat == (
        "engine core 0 was lost: killed by signal 9; "
        "3 engine core restarts within 100 s did not last (--max-engine-restarts 3)"
    )


def restarting(bench, engine=0, command_id="restart"):
    return bench.submit(RestartEngine(command_id=command_id, engine_id=engine))


def test_a_healthy_engine_core_is_restarted_when_somebody_asks_and_the_command_ends_when_it_serves():
    bench = Bench(CONFIG, engines=(0, 1))
    [order] = [e for e in restarting(bench, 1) if isinstance(e, ReplaceEngine)]
    assert order.kill
    assert bench.states(0, 1) == ["healthy", "restarting"]
    assert bench.all(Settle) == []
    bench.attached(1, pid=8)
    assert bench.all(Settle) == [Settle("restart")]
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_restart_that_was_asked_for_counts_against_no_budget():
    bench = Bench(CONFIG)
    for number in range(5):
        restarting(bench, command_id=f"restart-{number}")
        bench.attached(0, pid=10 + number)
    [order] = [e for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert order.after_s == 0.0


def test_a_restart_that_was_asked_for_fails_when_what_was_started_dies():
    bench = Bench(CONFIG)
    restarting(bench)
    lost(bench)
    assert bench.all(Settle) == [Settle("restart", error="engine core 0 was lost: killed by signal 9")]
    assert bench.view().state is EngineState.RESTARTING


@pytest.mark.parametrize("unrecoverable_reason", ["processes are forked here"])
def test_what_could_not_be_replaced_is_not_restarted_by_operator_either(unrecoverable_reason):
    bench = Bench(CONFIG)
    with pytest.raises(CommandConflict, match="cannot be replaced: processes are forked here"):
        bench.instance.submit(RestartEngine(command_id="restart", engine_id=0), bench.now, unrecoverable_reason)
    assert bench.states(0) == ["healthy"]


def test_what_is_being_restarted_is_not_restarted_again():
    bench = Bench(CONFIG)
    restarting(bench)
    with pytest.raises(CommandConflict, match="restarting already"):
        restarting(bench, command_id="again")


def test_an_engine_core_that_does_not_come_to_stand_still_is_killed_and_replaced():
    bench = Bench(CONFIG)
    bench.faulted()
    effects = bench.tick(1000.0)
    [order] = [e for e in effects if isinstance(e, ReplaceEngine)]
    assert order.kill
    assert "did not pause" in bench.view().reason
    assert bench.defeat is None


def test_one_that_never_served_is_not_replaced():
    bench = Bench(CONFIG, attached=False)
    bench.faulted()
    bench.tick(1000.0)
    assert bench.defeat.endswith("the engine core has never served")


def test_who_is_killed_to_be_replaced_is_waited_for_with_its_workers():
    bench = Bench(CONFIG)
    [order] = [e for e in restarting(bench) if isinstance(e, ReplaceEngine)]
    assert order.processes == (8, 7)


def test_where_engine_cores_fail_again_and_again_the_next_one_waits_longer_and_longer():
    bench = Bench(HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=3))
    for number in range(3):
        bench.faulted()
        bench.paused_by_fault()
        bench.attached(0, pid=10 + number)
    assert [e.after_s for e in bench.all(ReplaceEngine)] == [0.0, 1.0, 2.0]


def test_where_retries_do_not_last_another_engine_core_goes_on():
    bench = Bench(HoldfastConfig(max_retries=0, max_worker_restarts=0, max_engine_restarts=1))
    bench.faulted()
    effects = bench.paused_by_fault()
    assert [e.kill for e in effects if isinstance(e, ReplaceEngine)] == [True]
    bench.attached(0, pid=8)
    assert bench.view().state is EngineState.HEALTHY
    bench.faulted()
    assert kinds(bench.paused_by_fault())[-1] == "End"


# ---- paused by operator


def paused_and_lost():
    bench = Bench(CONFIG, engines=(0, 1))
    bench.pause("p", 0)
    bench.paused(0)
    lost(bench, 0)
    return bench


def test_what_takes_the_place_of_an_engine_core_that_was_paused_by_operator_is_paused_too():
    bench = paused_and_lost()
    effects = bench.attached(0, pid=8)
    assert [(e.engine_id, e.message.soft, e.message.epoch) for e in effects if isinstance(e, Send)] == [(0, True, 0)]
    assert {e.event.state for e in effects if isinstance(e, Publish)} == {EngineState.PAUSING}  # never shown as healthy
    bench.paused(0, broken=False)
    assert (bench.view(0).state, bench.view(0).pid, bench.view(0).paused_by_operator) == (EngineState.PAUSED, 8, True)
    assert bench.all(BeginRecovery) == []


def test_it_goes_on_when_it_is_told_to_and_has_used_up_no_retry():
    bench = paused_and_lost()
    bench.attached(0, pid=8)
    bench.paused(0, broken=False)
    bench.resume("r", 0)
    bench.recovered(0)
    assert bench.states(0, 1) == ["healthy", "healthy"]
    assert Settle("r") in bench.all(Settle)
    assert not bench.view(0).paused_by_operator


def test_a_paused_engine_core_may_be_lost_again_and_again():
    bench = paused_and_lost()
    bench.attached(0, pid=8)
    lost(bench, 0)  # before it stood
    lost(bench, 0)  # what was to take its place did not start
    bench.attached(0, pid=9)
    bench.paused(0, broken=False)
    assert bench.states(0, 1) == ["paused", "healthy"]


def test_a_pause_that_failed_because_the_engine_core_was_lost_is_forgotten():
    bench = Bench(CONFIG)
    bench.pause("p", 0)
    lost(bench, 0)
    assert [e.error is not None for e in bench.all(Settle)] == [True]
    bench.attached(0, pid=8)
    assert bench.view().state is EngineState.HEALTHY


# ---- in lockstep


def lockstep_pair():
    return Bench(CONFIG, groups=[(0, 1)])


def test_the_peers_of_a_lost_engine_core_stand_until_another_joins_them():
    bench = lockstep_pair()
    [order] = [e for e in lost(bench, 1) if isinstance(e, ReplaceEngine)]
    assert order.joins_epoch == 0
    assert bench.states(0, 1) == ["pausing", "restarting"]
    bench.paused(0)
    assert bench.states(0, 1) == ["paused", "restarting"]
    bench.attached(1, pid=8)
    assert bench.states(0, 1) == ["paused", "pausing"]
    assert bench.all(BeginRecovery) == []


def joined(bench, engine=1):
    bench.attached(engine, pid=8)
    return bench.paused(engine, broken=False)


def test_with_the_one_that_joins_the_group_rebuilds_its_collectives_and_goes_on():
    bench = lockstep_pair()
    lost(bench, 1)
    bench.paused(0)
    [order] = [e for e in joined(bench) if isinstance(e, BeginRecovery)]
    assert (order.engine_ids, order.epoch, order.rebuild) == ((0, 1), 1, True)
    bench.recovered(1)
    bench.recovered(0)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_peer_may_come_to_stand_after_the_one_that_joins():
    bench = lockstep_pair()
    lost(bench, 1)
    joined(bench)
    assert [e.rebuild for e in bench.paused(0) if isinstance(e, BeginRecovery)] == [True]


def test_both_engine_cores_of_a_group_may_be_lost():
    bench = lockstep_pair()
    lost(bench, 1)
    lost(bench, 0)
    assert bench.states(0, 1) == ["restarting", "restarting"]
    joined(bench, 0)
    joined(bench, 1)
    bench.recovered(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def recovering_pair():
    bench = lockstep_pair()
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.paused(1)
    assert bench.states(0, 1) == ["recovering", "recovering"]
    return bench


def test_an_engine_core_lost_in_a_recovery_lets_nobody_wait_for_it():
    bench = recovering_pair()
    assert CloseRendezvous((0, 1), 1) in lost(bench, 1)
    bench.aborted(0)
    assert bench.states(0, 1) == ["paused", "restarting"]
    joined(bench)
    bench.recovered(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_peer_that_had_recovered_already_stands_again():
    bench = recovering_pair()
    bench.recovered(0)
    lost(bench, 1)
    assert bench.states(0, 1) == ["pausing", "restarting"]
    bench.paused(0)
    joined(bench)
    bench.recovered(0)
    bench.recovered(1)
    assert bench.states(0, 1) == ["healthy", "healthy"]


def test_a_restart_in_lockstep_ends_once_the_whole_group_serves():
    bench = lockstep_pair()
    restarting(bench, 1)
    bench.paused(0)
    joined(bench)
    bench.recovered(0)
    assert bench.all(Settle) == []
    bench.recovered(1)
    assert Settle("restart") in bench.all(Settle)


def test_a_restart_in_a_lockstep_group_that_an_operator_has_paused_ends_before_the_resume():
    bench = lockstep_pair()
    bench.pause()
    bench.paused(0)
    bench.paused(1)
    restarting(bench, 1)
    assert Settle("restart") not in bench.all(Settle)
    joined(bench)
    assert Settle("restart") in bench.all(Settle)
    assert bench.states(0, 1) == ["paused", "paused"]


def test_a_group_that_was_paused_by_operator_waits_for_the_operator_with_its_new_member():
    bench = lockstep_pair()
    bench.pause()
    bench.paused(0)
    bench.paused(1)
    lost(bench, 1)
    joined(bench)
    assert bench.states(0, 1) == ["paused", "paused"]
    bench.resume()
    assert bench.all(BeginRecovery)[-1].rebuild


def test_nobody_can_join_where_collectives_cannot_be_rebuilt():
    bench = Bench(CONFIG, groups=[(0, 1)], attached=False)
    bench.attached(0, unrebuildable=("captured graphs",))
    bench.attached(1)
    lost(bench, 1)
    assert "captured graphs cannot be rebuilt in place" in bench.defeat


# ---- late reports of an old process


def test_the_first_report_of_a_replacement_that_has_ended_is_not_taken_for_the_next_ones():
    bench = Bench(CONFIG)
    lost(bench)
    bench.lost(pid=9)
    assert bench.attached(pid=9) == []
    assert bench.view().state is EngineState.RESTARTING
    bench.attached(pid=11)
    assert (bench.view().state, bench.view().pid) == (EngineState.HEALTHY, 11)


@pytest.mark.parametrize(
    "late",
    [
        m.EngineAttached(engine_id=0, pid=7, hooks=(), workers=()),
        m.EngineFaulted(engine_id=0, pid=7, epoch=0, fault=a_fault()),
        m.EnginePaused(engine_id=0, pid=7, epoch=0, fault=a_fault(), unfinished_requests=0),
        m.RequestsSuspected(engine_id=0, pid=7, epoch=0, suspects=2, reason="late"),
        m.StandbysChanged(engine_id=0, pid=7, standbys=m.Standbys(wanted=1, ready=1, memory_bytes=1)),
    ],
    ids=lambda fact: type(fact).__name__,
)
@pytest.mark.parametrize("has_reported", [False, True])
def test_a_late_report_of_a_lost_process_changes_nothing(late, has_reported):
    bench = Bench(CONFIG)
    lost(bench)
    if has_reported:
        bench.attached(pid=9)
    before = bench.view()
    assert bench.observe(late) == []
    assert bench.view() == before


def test_the_first_report_of_a_process_that_was_given_up_before_is_not_taken_for_its_replacement():
    bench = Bench(CONFIG, attached=False)
    bench.faulted()
    bench.instance.lost(0, "killed by signal 9", bench.now)
    assert bench.attached(pid=1) == []
    bench.attached(pid=9)
    assert (bench.view().state, bench.view().pid) == (EngineState.HEALTHY, 9)


@pytest.mark.parametrize("has_reported", [False, True])
def test_the_loss_of_a_process_that_is_lost_already_is_no_loss_of_its_replacement(has_reported):
    bench = Bench(CONFIG)
    lost(bench)
    if has_reported:
        bench.attached(pid=9)
    before = bench.view()
    assert bench.lost(pid=7) == []
    assert bench.view() == before


# ---- beside it


def test_faults_of_a_neighbour_are_handled_while_an_engine_core_is_replaced():
    bench = Bench(CONFIG, engines=(0, 1))
    lost(bench, 1)
    bench.faulted(0)
    bench.paused_by_fault(0)
    bench.recovered(0)
    assert bench.states(0, 1) == ["healthy", "restarting"]
    assert bench.tick(700.0) == []  # the owner's start has a bound of its own, which comes first


def test_an_attached_message_knows_its_workers():
    fact = m.EngineAttached(engine_id=0, pid=9, hooks=(), workers=(m.WorkerAttached(rank=0, pid=10, hooks=()),))
    bench = Bench(CONFIG, attached=False)
    bench.observe(fact)
    [order] = [e for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert order.processes == (10,)


# ---- what was wrong with a process is gone with it


@pytest.mark.parametrize("rank", [0, None])
def test_in_lockstep_what_was_wrong_with_an_engine_core_does_not_end_its_replacement(rank):
    config = HoldfastConfig(max_retries=1, max_worker_restarts=0, max_engine_restarts=3)
    world = World(config, (), [(0, FaultClass.TRANSIENT, rank)] * 2)
    assert world.run(100.0, 20)
    assert world.bench.states(0, 1, 2) == ["healthy"] * 3
    assert [world.bench.view(e).restarts for e in (0, 1, 2)] == [1, 0, 0]


def test_in_lockstep_a_replacement_is_let_in_where_no_retries_are_allowed():
    world = World(HoldfastConfig(max_retries=0), (), [(0, "lost", None)])
    assert world.run(100.0, 20)
    assert world.bench.states(0, 1, 2) == ["healthy"] * 3
