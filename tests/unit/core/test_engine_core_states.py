"""The states of a busy loop between the facts, and when the machine of an engine core has to be woken."""

import pytest

from holdfast.core.config import HoldfastConfig, RuntimeSettings
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import REPORT_WAIT_S, BusyLoop, EngineCoreMachine
from holdfast.core.engine_core.rank_control import PROBE_S, SEARCH_MARGIN_S
from holdfast.core.faults.classification import default_classifier
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall
from support.engine_core_bench import WALL, EngineCoreBench


class ErrorOfARank(RuntimeError):
    rank = 3
    phase = "sampling"


def machine_alone():
    machine = EngineCoreMachine(0, HoldfastConfig(), lambda: 0.0)
    machine.handle(facts.HostAttached(False), 50.0)
    return machine


def test_the_busy_loop_is_named_by_what_it_waits_for():
    machine = machine_alone()
    seen = [machine.busy_loop]
    for fact in [
        facts.StepRaised(ValueError("boom"), False, False),
        facts.WorkersChecked(()),
        facts.FaultStudied(),
        m.RecoverEngine(command_id="c", epoch=1),
        facts.RecoveryFinished(m.RecoveryReport()),
        facts.StepRaised(ValueError("boom"), True, False),
        facts.FaultStudied(),
        m.EndEngine(command_id="c", reason="enough"),
    ]:
        machine.handle(fact, 50.0)
        seen.append(machine.busy_loop)
    assert seen == [
        BusyLoop.RUNNING,
        BusyLoop.CHECKING_WORKERS,
        BusyLoop.STUDYING_FAULT,
        BusyLoop.PAUSED,
        BusyLoop.RECOVERING,
        BusyLoop.RUNNING,
        BusyLoop.STUDYING_FAULT,
        BusyLoop.PAUSED,
        BusyLoop.ENDED,
    ]


def test_a_machine_that_waits_for_a_ranks_account_is_due_when_the_wait_ends():
    bench = EngineCoreBench()
    bench.step_raises(is_workers_reply=True)
    assert bench.machine.wakes_at() == bench.now + REPORT_WAIT_S


def test_a_machine_that_searches_a_stalled_rank_is_due_when_the_search_ends():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.acknowledge(0, 1)
    bench.step_raises(is_interrupt=True)
    assert bench.machine.wakes_at() == bench.now + PROBE_S + SEARCH_MARGIN_S


def test_a_look_at_the_very_end_of_a_search_decides():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.now += PROBE_S - 0.1
    bench.look(bench.stall(1))
    bench.keep_evidence()
    assert bench.killed == [1]


def test_the_rank_and_the_phase_that_an_error_names_are_those_of_the_fault():
    bench = EngineCoreBench()
    bench.step_raises(ErrorOfARank("boom"))
    [pause] = bench.announced
    assert (pause.fault.rank, pause.fault.phase) == (3, "sampling")


def test_the_answer_of_a_worker_is_passed_on_with_its_reason():
    bench = EngineCoreBench()
    bench.tell(m.WorkerAnswered(rank=0, command_id="c", refused="no such phase"))
    bench.tell(m.WorkerAnswered(rank=0, command_id="d", refused=None))
    assert bench.told_client == [
        m.EngineAnswered(engine_id=0, command_id="c", refused="no such phase"),
        m.EngineAnswered(engine_id=0, command_id="d", refused=None),
    ]


@pytest.mark.parametrize("exit_code", [-9, -11, 1])
def test_a_lost_rank_is_classified_by_how_its_process_ended(exit_code):
    bench = EngineCoreBench(ranks=2)
    bench.lose(0, exit_code=exit_code)
    fault = bench.faults[-1]
    assert (fault.class_reason, fault.at) == (default_classifier().of_exit(exit_code).reason, WALL + bench.now)


def test_a_rank_that_is_declared_hung_is_logged_as_an_error():
    bench = EngineCoreBench()
    bench.look(bench.stall(0))
    assert bench.all_of(fx.Log) == [fx.Log("rank 0 stalled: no progress", is_error=True)]


def test_ranks_that_cannot_be_declared_hung_are_logged_with_the_reason():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), is_rebuildable=False)
    text = "ranks make no progress; no rank is declared hung, because their collectives cannot be rebuilt"
    assert bench.all_of(fx.Log) == [fx.Log(text)]


def test_evidence_that_nothing_waits_for_kills_no_rank():
    bench = EngineCoreBench(ranks=2)
    bench.tell(facts.EvidenceKept(bench.stall(1)))
    assert bench.killed == []


def test_a_refused_injection_answers_the_command_that_asked():
    spec = InjectionSpec(phase=Phase.FORWARD)
    starting = EngineCoreBench(starting=True)
    starting.tell(m.ArmFault(command_id="a", spec=spec))
    bench = EngineCoreBench()
    bench.tell(facts.ArmingUndelivered(m.ArmWorkerFault(command_id="b", spec=spec)))
    assert [(told.command_id, told.refused) for told in starting.told_client + bench.told_client] == [
        ("a", "the engine core is still starting"),
        ("b", "rank 0 did not accept the command"),
    ]


def test_a_hung_rank_is_reported_with_its_engine_core_and_the_time():
    machine = EngineCoreMachine(2, HoldfastConfig(), lambda: WALL)
    machine.handle(m.WorkerAttached(rank=0, pid=100, hooks=()), 50.0)
    machine.handle(facts.HostAttached(False), 50.0)
    stall = Stall(0, 100, False, "no progress", None)
    machine.handle(facts.StallsSeen((stall,), is_rebuildable=True), 50.0)
    effects = machine.handle(facts.EvidenceKept(stall), 50.0)
    [told] = [effect.message for effect in effects if isinstance(effect, fx.SendToClient)]
    assert (told.engine_id, told.fault.engine_id, told.fault.rank, told.fault.at) == (2, 2, 0, WALL)
    assert (told.fault.phase, told.fault.step) == (None, None)


def test_changed_settings_are_passed_on_to_the_host():
    bench = EngineCoreBench(drain_timeout_s=10.0)
    bench.tell(m.ChangeSettings(settings=RuntimeSettings(drain_timeout_s=3.0)))
    assert bench.all_of(fx.ConfigureHost) == [fx.ConfigureHost(HoldfastConfig(drain_timeout_s=3.0))]


def test_a_fault_for_a_rank_that_does_not_exist_answers_the_command_that_asked():
    bench = EngineCoreBench()
    bench.tell(m.ArmFault(command_id="c", spec=InjectionSpec(phase=Phase.FORWARD, rank=4)))
    assert bench.told_client == [m.EngineAnswered(engine_id=0, command_id="c", refused="engine 0 has no rank 4")]
