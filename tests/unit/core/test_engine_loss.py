"""An engine core whose process is gone: another one takes its place, or the instance ends."""

import pytest

from holdfast.core import messages as m
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import ReplaceEngine, Settle
from holdfast.core.engine_loss import decide_replacement
from holdfast.core.states import EngineState
from support.instance_bench import EXTERNAL, Bench, kinds

CONFIG = HoldfastConfig(max_engine_restarts=3, engine_restart_window_s=100.0)


def lost(bench, engine=0):
    bench.now += 1.0
    return bench.lost(engine)


def test_a_lost_engine_core_is_replaced_and_the_instance_goes_on():
    bench = Bench(CONFIG, engines=(0, 1))
    effects = lost(bench, 1)
    assert kinds(effects)[-3:] == ["engine-lost", "decision-made", "ReplaceEngine"]
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
    assert bench.faulted() == bench.held() == bench.recovered() == []
    assert bench.view().state is EngineState.RESTARTING


def test_a_replacement_waits_for_those_who_serve_and_for_the_dead_ones_workers():
    bench = Bench(CONFIG)
    [order] = [e for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert order == ReplaceEngine(0, after_s=0.0, known_at=bench.events[-1].sequence, processes=(8,))


def test_an_engine_core_may_be_lost_in_the_middle_of_a_recovery():
    bench = Bench(CONFIG)
    bench.faulted()
    bench.held()
    assert bench.view().state is EngineState.RECOVERING
    lost(bench)
    assert bench.view().state is EngineState.RESTARTING
    bench.attached(0, pid=8)
    bench.faulted()
    bench.held()
    bench.recovered()
    assert bench.view().state is EngineState.HEALTHY


def test_a_command_on_a_lost_engine_core_ends_with_the_reason():
    bench = Bench(CONFIG, engines=(0, 1))
    bench.pause("pause", 1, soft=True)
    bench.arm("arm", bench_spec(1))
    lost(bench, 1)
    error = "engine core 1 is gone: killed by signal 9"
    assert bench.all(Settle) == [Settle("pause", error=error), Settle("arm", error=error)]


def bench_spec(engine):
    from holdfast.core.faults import Phase
    from holdfast.core.injection import InjectionSpec

    return InjectionSpec(phase=Phase.FORWARD, engine_id=engine)


def test_tries_pause_longer_and_longer_and_end_in_the_end_of_the_instance():
    bench = Bench(CONFIG)
    pauses = []
    for _ in range(3):
        pauses += [e.after_s for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert pauses == [0.0, 1.0, 2.0]
    assert kinds(lost(bench))[-1] == "End"
    assert bench.defeat == (
        "engine core 0 is gone: killed by signal 9; 3 restarts within 100 s did not last (--max-engine-restarts 3)"
    )


def test_restarts_of_long_ago_do_not_count():
    assert decide_replacement(200.0, 0, False, (1.0, 2.0, 3.0), CONFIG).is_possible


@pytest.mark.parametrize(
    ("in_lockstep", "config", "reason"),
    [
        (True, CONFIG, "in lockstep"),
        (False, EXTERNAL, "unasked"),
        (False, HoldfastConfig(max_engine_restarts=0), "--max-engine-restarts 0"),
    ],
)
def test_what_is_not_replaced_says_why(in_lockstep, config, reason):
    plan = decide_replacement(0.0, 0, in_lockstep, (), config)
    assert not plan.is_possible
    assert reason in plan.reason


def test_an_engine_core_in_lockstep_takes_the_instance_with_it():
    bench = Bench(CONFIG, groups=[(0, 1)])
    lost(bench, 1)
    assert bench.defeat.startswith("engine core 1 is gone: killed by signal 9; engine cores in lockstep")


def test_faults_of_a_neighbour_are_handled_while_an_engine_core_is_replaced():
    bench = Bench(CONFIG, engines=(0, 1))
    lost(bench, 1)
    bench.faulted(0)
    bench.held(0)
    bench.recovered(0)
    assert bench.states(0, 1) == ["healthy", "restarting"]
    assert bench.tick(1000.0) == []  # the owner's start has a bound of its own


def test_an_attached_message_knows_its_workers():
    fact = m.EngineAttached(engine_id=0, pid=9, hooks=(), workers=(m.WorkerAttached(rank=0, pid=10, hooks=()),))
    bench = Bench(CONFIG, attached=False)
    bench.observe(fact)
    [order] = [e for e in lost(bench) if isinstance(e, ReplaceEngine)]
    assert order.processes == (10,)
