"""The machine of an engine core, on virtual time: from the error of a step to the resumption of the busy loop."""

import pytest

from holdfast.core.config import RuntimeSettings
from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import REANNOUNCE_S, REPORT_WAIT_S, BusyLoop
from holdfast.core.faults.faults import FaultClass
from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol import messages as m
from support.engine_core_bench import WALL, EngineCoreBench, a_fault

SILENCE = {"engine_recovery_timeout_s": 6.0, "containment_timeout_s": 4.0}


def test_an_error_of_a_step_is_studied_and_announced_with_its_fault():
    bench = EngineCoreBench()
    bench.step_raises(ValueError(PublicText("boom")))
    study, announced = bench.tasks[-2:]
    assert (study.fault.error_type, study.fault.message, study.fault.at) == ("ValueError", "boom", WALL + bench.now)
    assert announced == fx.AnnouncePause(0, study.fault, broken=False)
    assert bench.machine.busy_loop is BusyLoop.PAUSED


def test_an_interrupt_is_announced_without_a_fault():
    bench = EngineCoreBench()
    bench.step_raises(is_interrupt=True)
    assert bench.announced == [fx.AnnouncePause(0, None, broken=False)]


# ---- the root cause


def test_the_text_of_a_workers_reply_waits_for_the_workers_own_account():
    bench = EngineCoreBench()
    bench.step_raises(is_workers_reply=True)
    bench.wait(REPORT_WAIT_S - 0.1)
    assert bench.announced == []
    bench.rank_faults(fault=a_fault(message="division by zero"))
    assert [pause.fault.message for pause in bench.announced] == ["division by zero"]


def test_a_worker_that_gives_no_account_in_time_leaves_the_text_of_its_reply():
    bench = EngineCoreBench()
    bench.step_raises(RuntimeError(PublicText("Worker failed")), is_workers_reply=True)
    bench.wait(REPORT_WAIT_S)
    assert [pause.fault.message for pause in bench.announced] == ["Worker failed"]


def test_an_account_that_came_before_the_error_is_the_cause_at_once():
    bench = EngineCoreBench()
    bench.rank_faults(fault=a_fault(message="division by zero"))
    bench.step_raises(is_interrupt=True)
    assert [pause.fault.message for pause in bench.announced] == ["division by zero"]


def test_a_lost_worker_explains_more_than_the_error_of_the_step():
    bench = EngineCoreBench()
    bench.lost_ranks = (2, 3)
    bench.step_raises(RuntimeError("Executor failed."))
    [pause] = bench.announced
    assert (pause.fault.fault_class, pause.fault.class_reason, pause.fault.rank) == (
        FaultClass.WORKER_LOST,
        "the process of a worker is gone",
        2,
    )


def test_a_fault_of_an_engine_core_in_lockstep_lets_its_peers_go():
    bench = EngineCoreBench(in_lockstep=True)
    bench.step_raises()
    assert bench.all_of(fx.BreakOwnCollectives)
    assert bench.told_to_break == [0]


def test_a_fault_of_an_engine_core_alone_breaks_nothing():
    bench = EngineCoreBench(ranks=2)
    bench.step_raises()
    assert (bench.all_of(fx.BreakOwnCollectives), bench.told_to_break) == ([], [])


# ---- the announcement


def test_the_pause_is_announced_once_every_rank_has_acknowledged_that_it_stopped():
    bench = EngineCoreBench(ranks=2, in_lockstep=True)
    bench.step_raises()
    bench.acknowledge(0)
    assert bench.announced == []
    bench.acknowledge(1)
    assert [pause.broken for pause in bench.announced] == [True]


def test_the_pause_is_announced_again_until_a_command_comes():
    bench = EngineCoreBench()
    bench.step_raises()
    bench.wait(3 * REANNOUNCE_S + 0.1)
    assert len(bench.announced) == 4
    bench.command_recovery()
    bench.wait(3 * REANNOUNCE_S)
    assert len(bench.announced) == 4


def test_a_client_that_is_silent_too_long_ends_the_engine_core():
    bench = EngineCoreBench(**SILENCE)
    bench.step_raises()
    bench.wait(9.9)
    assert bench.machine.busy_loop is BusyLoop.PAUSED
    bench.wait(0.1)
    assert bench.tasks[-1] == fx.EndBusyLoop("the client has been silent for 10 s")


def test_a_client_that_says_anything_is_waited_for_longer():
    bench = EngineCoreBench(**SILENCE)
    bench.step_raises()
    bench.wait(8.0)
    bench.tell(m.PauseEngine(command_id="alive", epoch=0, soft=True))
    bench.wait(8.0)
    assert bench.machine.busy_loop is BusyLoop.PAUSED


def test_settings_may_be_replaced_while_the_busy_loop_is_paused():
    bench = EngineCoreBench(**SILENCE)
    bench.step_raises()
    settings = RuntimeSettings(engine_recovery_timeout_s=1.0, containment_timeout_s=1.0)
    bench.tell(m.ChangeSettings(settings=settings))
    bench.wait(REANNOUNCE_S)
    assert bench.tasks[-1] == fx.EndBusyLoop("the client has been silent for 2 s")


# ---- commands


def test_a_recovery_begins_its_epoch_and_says_how_long_the_busy_loop_was_paused():
    bench = EngineCoreBench()
    bench.step_raises()
    bench.wait(1.5)
    bench.command_recovery(epoch=3)
    assert bench.machine.epoch == 3
    bench.wait(0.5)
    bench.tell(facts.RecoveryFinished(m.RecoveryReport(requests=7)))
    recovered = bench.told_client[-1]
    assert (recovered.command_id, recovered.epoch, recovered.worker_pids) == ("recover", 3, (100,))
    assert (recovered.report.requests, recovered.report.paused_s) == (7, 2.0)
    assert bench.machine.busy_loop is BusyLoop.RUNNING


def test_a_recovery_of_an_epoch_that_is_over_is_ignored():
    bench = EngineCoreBench()
    bench.step_raises()
    bench.recover(epoch=2)
    bench.step_raises()
    bench.command_recovery(epoch=2)
    assert bench.machine.busy_loop is BusyLoop.PAUSED


def test_a_command_that_comes_before_the_pause_is_followed_after_the_announcement():
    bench = EngineCoreBench()
    bench.command_recovery()
    assert bench.tasks == []
    bench.step_raises()
    assert [type(task) for task in bench.tasks[-2:]] == [fx.AnnouncePause, fx.RunRecovery]


def test_a_command_to_end_is_followed_whatever_the_epoch():
    bench = EngineCoreBench()
    bench.step_raises()
    bench.recover(epoch=2)
    bench.step_raises()
    bench.tell(m.EndEngine(command_id="", reason="defeated"))
    assert bench.tasks[-1] == fx.EndBusyLoop("defeated")


def test_deadlines_of_steps_are_learned_anew_with_every_recovery():
    bench = EngineCoreBench()
    bench.step_raises()
    assert bench.all_of(fx.RelearnDeadlines) == []
    bench.command_recovery()
    assert len(bench.all_of(fx.RelearnDeadlines)) == 1


# ---- a recovery that fails


def test_a_failed_recovery_is_reported_and_the_pause_announced_with_the_first_fault():
    bench = EngineCoreBench()
    bench.step_raises(ValueError(PublicText("first")))
    bench.command_recovery()
    bench.tell(facts.RecoveryFailed(RuntimeError(PublicText("again")), lost_ranks=()))
    aborted = bench.told_client[-1]
    assert (type(aborted), aborted.epoch, aborted.fault.message) == (m.RecoveryAborted, 1, "again")
    assert (bench.announced[-1].epoch, bench.announced[-1].fault.message) == (1, "first")
    assert sum(isinstance(task, fx.StudyFault) for task in bench.tasks) == 1
    bench.recover(epoch=2)


@pytest.mark.parametrize("about", [{"ranks": 2}, {"in_lockstep": True}])
def test_peers_that_wait_in_a_failed_recovery_are_let_go(about):
    bench = EngineCoreBench(**about)
    bench.step_raises(is_interrupt=True)
    bench.command_recovery()
    bench.effects.clear()
    bench.tell(facts.RecoveryFailed(RuntimeError(PublicText("again")), lost_ranks=()))
    assert bench.told_to_break == list(bench.machine.registry.ranks())
    assert len(bench.all_of(fx.BreakOwnCollectives)) == 1


def test_a_failed_recovery_without_peers_breaks_nothing():
    bench = EngineCoreBench()
    bench.step_raises()
    bench.command_recovery()
    bench.tell(facts.RecoveryFailed(RuntimeError("again"), lost_ranks=(0,)))
    assert bench.told_to_break == []
    assert bench.told_client[-1].fault.fault_class is FaultClass.WORKER_LOST


# ---- pauses that are commanded


def test_a_hard_pause_breaks_collectives_and_interrupts_the_busy_loop():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.PauseEngine(command_id="pause", epoch=0))
    assert (bench.told_to_break, bench.interrupts) == ([0, 1], 1)


def test_a_soft_pause_lets_the_ranks_finish_their_step():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.PauseEngine(command_id="pause", epoch=0, soft=True))
    assert (bench.told_to_break, bench.interrupts) == ([], 1)


def test_a_hard_pause_of_a_rank_without_peers_breaks_nothing():
    bench = EngineCoreBench()
    bench.tell(m.PauseEngine(command_id="pause", epoch=0))
    assert (bench.told_to_break, bench.interrupts) == ([], 1)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_pause_of_another_epoch_is_ignored(epoch, soft):
    bench = EngineCoreBench(ranks=2)
    bench.step_raises()
    bench.recover(epoch=2)
    bench.effects.clear()
    bench.tell(m.PauseEngine(command_id="pause", epoch=epoch, soft=soft))
    assert bench.effects == []


# ---- the start


def test_an_engine_core_that_joins_a_lockstep_group_pauses_before_its_first_step():
    bench = EngineCoreBench(in_lockstep=True, joining_epoch=4)
    bench.tell(facts.JoinAwaited())
    assert bench.announced == [fx.AnnouncePause(4, None, broken=False)]
    bench.recover(epoch=5)


def test_nothing_is_asked_of_a_host_that_is_not_attached_yet():
    bench = EngineCoreBench(starting=True)
    bench.tell(m.PauseEngine(command_id="pause", epoch=0))
    bench.tell(m.CoordinatorReplaced())
    bench.tell(m.ClientLost(client_index=1))
    bench.lose(0)
    assert [type(effect) for effect in bench.effects] == [fx.SendToClient]


def test_a_new_coordinator_and_a_lost_api_server_are_the_hosts_to_deal_with():
    bench = EngineCoreBench()
    assert bench.tell(m.CoordinatorReplaced()) == [fx.IntroduceToCoordinator()]
    assert bench.tell(m.ClientLost(client_index=1)) == [fx.DropRequestsOf(1)]


def test_a_command_that_came_twice_recovers_once():
    bench = EngineCoreBench()
    bench.command_recovery(epoch=1)
    bench.command_recovery(epoch=1)
    bench.step_raises()
    bench.tell(facts.RecoveryFinished(m.RecoveryReport()))
    bench.step_raises()
    assert [type(task) for task in bench.tasks].count(fx.RunRecovery) == 1
    assert bench.machine.busy_loop is BusyLoop.PAUSED
