"""The machine of an engine core, on virtual time: containment, lost and hung ranks, armed faults."""

import pytest

from holdfast.core.engine_core import effects as fx
from holdfast.core.engine_core import facts
from holdfast.core.engine_core.machine import REANNOUNCE_S
from holdfast.core.engine_core.rank_control import KILL_AGAIN_S, PROBE_S, SEARCH_MARGIN_S
from holdfast.core.engine_core.state import MAX_ARMED, MAX_KILLS, RankRegistry
from holdfast.core.faults.faults import FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.steps import BatchShape, Running
from support.engine_core_bench import EngineCoreBench, a_fault

BOUND_S = 5.0  # of an acknowledgement


def a_report(rank, pid):
    return m.WorkerAttached(rank=rank, pid=pid, hooks=())


def a_call(number=1):
    return Running(0, number, 20, Phase.FORWARD, BatchShape(8, 8), 0.0)


# ---- containment


def test_every_rank_but_the_faulty_one_is_told_to_break_once():
    bench = EngineCoreBench(ranks=3)
    bench.rank_faults(1)
    bench.rank_faults(0, a_fault(FaultClass.DEVICE, rank=0))
    assert bench.told_to_break == [0, 2]
    assert bench.told_ranks[0] == (0, m.BreakCollectives(epoch=0))


def test_a_fault_of_a_rank_is_reported_and_interrupts_a_busy_loop_with_peers():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1)
    assert bench.told_client == [m.EngineFaulted(engine_id=0, epoch=0, fault=a_fault(rank=1))]
    assert bench.interrupts == 1


def test_a_fault_of_the_only_rank_comes_with_its_reply():
    bench = EngineCoreBench()
    bench.rank_faults()
    assert (len(bench.faults), bench.interrupts, bench.told_to_break) == (1, 0, [])


def test_the_deepest_fault_of_an_epoch_is_the_root_cause():
    bench = EngineCoreBench(ranks=2)
    for fault in (a_fault(FaultClass.COMMUNICATOR), a_fault(), a_fault(message="later")):
        bench.rank_faults(0, fault)
    assert bench.faults == [a_fault(FaultClass.COMMUNICATOR), a_fault()]
    bench.acknowledge(1)
    bench.step_raises(is_interrupt=True)
    assert bench.announced[0].fault == a_fault()


def test_a_fault_of_another_epoch_is_ignored():
    bench = EngineCoreBench(ranks=2)
    bench.step_raises()
    bench.recover(epoch=2)
    bench.effects.clear()
    for epoch in (0, 1, 3):
        bench.rank_faults(1, epoch=epoch)
    assert bench.effects == []


# ---- a failed rank that takes part in the rest of its step


def test_nothing_is_broken_where_the_failed_rank_takes_part_in_its_step():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1, finishes=True)
    assert (len(bench.faults), bench.interrupts, bench.told_to_break) == (1, 1, [])
    bench.step_raises(is_interrupt=True)
    assert bench.announced == [fx.AnnouncePause(0, a_fault(rank=1), broken=False)]


def test_two_ranks_that_take_part_are_one_fault():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1, finishes=True)
    bench.rank_faults(0, finishes=True)
    assert (len(bench.faults), bench.interrupts, bench.told_to_break) == (1, 1, [])


def test_a_rank_that_cannot_take_part_after_all_has_its_peers_released():
    """Its second fault is no deeper than its first, and collectives are broken all the same, once."""
    bench = EngineCoreBench(ranks=3)
    bench.rank_faults(1, finishes=True)
    bench.rank_faults(1)
    bench.rank_faults(1)
    assert (len(bench.faults), bench.interrupts, bench.told_to_break) == (1, 2, [0, 2])


def test_a_rank_that_takes_part_is_told_when_collectives_are_broken_after_all():
    bench = EngineCoreBench(ranks=3)
    bench.rank_faults(1, finishes=True)
    bench.rank_faults(2)
    assert bench.told_to_break == [0, 1]
    bench.rank_faults(0, finishes=True)  # knows nothing of the break yet, and acknowledges it
    bench.step_raises(is_interrupt=True)
    assert bench.announced == []
    bench.acknowledge(0, 1)
    assert bench.announced != []


def test_a_step_that_does_not_end_has_its_collectives_broken():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1, finishes=True)
    bench.wait(BOUND_S - 0.1)
    assert bench.told_to_break == []
    bench.wait(0.2)
    assert (bench.told_to_break, bench.interrupts) == ([0, 1], 2)
    bench.wait(BOUND_S)
    assert bench.told_to_break == [0, 1]


def test_a_paused_busy_loop_waits_for_no_step():
    """Whoever decides may take a while, and nothing is broken meanwhile."""
    bench = EngineCoreBench(ranks=2, fault_policy="external")
    bench.rank_faults(1, finishes=True)
    bench.step_raises(is_interrupt=True)
    bench.wait(3 * BOUND_S)
    assert bench.told_to_break == []


def test_a_new_process_of_a_rank_owes_no_step():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1, finishes=True)
    bench.tell(facts.RanksStarted({1: 900}))
    bench.wait(2 * BOUND_S)
    assert bench.told_to_break == []


def test_an_epoch_begins_with_nothing_known_of_the_one_before():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(0)
    bench.acknowledge(1)
    bench.step_raises(is_interrupt=True)
    bench.recover()
    bench.step_raises(is_interrupt=True)
    assert bench.announced[-1] == fx.AnnouncePause(1, None, broken=False)
    bench.wait(2 * BOUND_S)
    assert bench.killed == []


def test_an_acknowledgement_of_an_old_epoch_is_still_due():
    bench = EngineCoreBench(ranks=2, in_lockstep=True)
    bench.step_raises()
    bench.acknowledge(0, 1)
    bench.recover()
    bench.step_raises()
    bench.acknowledge(0, epoch=0)
    bench.acknowledge(1, epoch=1)
    bench.wait(BOUND_S)
    assert bench.killed == [0]


def test_a_rank_that_does_not_acknowledge_in_time_is_declared_hung_and_killed_once():
    bench = EngineCoreBench(ranks=3, acknowledge_timeout_s=BOUND_S)
    bench.rank_faults(2)
    bench.acknowledge(1)
    bench.wait(BOUND_S - 0.1)
    assert bench.killed == []
    bench.wait(0.1)
    bench.lose(0)
    bench.wait(1e4)
    assert bench.killed == [0]
    fault = bench.faults[-1]
    assert (fault.fault_class, fault.rank) == (FaultClass.UNRESPONSIVE, 0)
    assert fault.message == "rank 0 did not acknowledge within 5 s that it stopped; declared hung"


def test_the_pause_is_announced_at_the_bound_when_a_rank_stays_silent():
    bench = EngineCoreBench(ranks=2, acknowledge_timeout_s=BOUND_S)
    bench.rank_faults(1)
    bench.step_raises(is_interrupt=True)
    bench.wait(BOUND_S - 0.1)
    assert bench.announced == []
    bench.wait(0.1)
    assert (bench.killed, len(bench.announced)) == ([0], 1)


def test_a_rank_that_faults_owes_no_acknowledgement():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(0)
    bench.rank_faults(1, a_fault(FaultClass.COMMUNICATOR, rank=1))
    bench.step_raises(is_interrupt=True)
    assert len(bench.announced) == 1


# ---- lost ranks


def test_a_lost_rank_is_reported_and_ends_a_busy_loop_without_peers_as_well():
    bench = EngineCoreBench()
    bench.lose(0)
    [fault] = bench.faults
    assert (fault.fault_class, fault.rank, fault.error_type) == (FaultClass.WORKER_LOST, 0, "WorkerLost")
    assert fault.message == "the process of rank 0 is gone: killed by SIGKILL"
    assert bench.interrupts == 1


def test_peers_of_a_lost_rank_are_let_go_and_the_dead_owe_nothing():
    bench = EngineCoreBench(ranks=2)
    bench.lose(0)
    assert bench.told_to_break == [1]


def test_the_death_of_a_rank_that_was_killed_on_purpose_is_no_new_loss():
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    bench.lose(0)
    assert [fault.fault_class for fault in bench.faults] == [FaultClass.UNRESPONSIVE]
    assert bench.interrupts == 1
    bench.attach(0, pid=200)
    bench.lose(0)
    assert bench.faults[-1].fault_class is FaultClass.WORKER_LOST, "its replacement may be lost as well"


def test_the_death_of_a_killed_rank_is_no_new_loss_when_the_news_comes_in_the_next_epoch():
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    bench.step_raises()
    bench.command_recovery(epoch=1)
    bench.lose(0)
    assert [fault.fault_class for fault in bench.faults] == [FaultClass.UNRESPONSIVE]
    bench.attach(0, pid=200)
    bench.lose(0)
    assert bench.faults[-1].fault_class is FaultClass.WORKER_LOST


def test_a_killed_rank_that_was_replaced_before_its_death_was_told_is_watched_like_others():
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    bench.attach(0, pid=200)
    bench.lose(0)
    assert bench.faults[-1].fault_class is FaultClass.WORKER_LOST


def test_a_rank_that_does_not_leave_a_broken_collective_is_killed():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.RankStuck(rank=1, pid=101, collective="all_reduce"))
    assert (bench.killed, bench.faults[0].message) == (
        [1],
        "rank 1 did not leave all_reduce after collectives were broken; declared hung",
    )


def test_a_rank_is_killed_again_until_its_death_is_told_because_a_kill_may_fail():
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    bench.wait(2 * KILL_AGAIN_S)
    assert bench.killed == [0, 0, 0]
    bench.lose(0)
    bench.wait(3 * KILL_AGAIN_S)
    assert bench.killed == [0, 0, 0]


def test_a_process_that_does_not_die_is_killed_a_bounded_number_of_times():
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    bench.wait(1000 * KILL_AGAIN_S)
    assert bench.killed == [0] * MAX_KILLS


@pytest.mark.parametrize("ends_by", ["recovery", "new process"])
def test_no_process_is_killed_again_after_a_recovery_has_begun_or_a_new_process_has_come(ends_by):
    bench = EngineCoreBench()
    bench.tell(m.RankStuck(rank=0, pid=100, collective="all_reduce"))
    if ends_by == "recovery":
        bench.step_raises()
        bench.command_recovery(epoch=1)
    else:
        bench.attach(0, pid=200)
    bench.wait(3 * KILL_AGAIN_S)
    assert bench.killed == [0]


@pytest.mark.parametrize(
    "late",
    [
        m.RankStuck(rank=0, pid=100, collective="all_reduce"),
        m.RankFaulted(rank=0, pid=100, epoch=0, fault=a_fault()),
        m.WorkerAnswered(rank=0, pid=100, command_id="arm"),
        m.CollectivesBroken(rank=0, pid=100, epoch=0),
        a_report(0, 100),
        facts.RankLost(0, 100, "killed by SIGKILL", -9),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_a_late_report_of_an_old_process_changes_nothing(late):
    bench = EngineCoreBench()
    bench.attach(0, pid=200)
    assert bench.tell(late) == []
    assert bench.machine.registry.pids() == {0: 200}


def test_a_new_process_in_an_epoch_with_broken_collectives_is_told_to_break_as_well():
    bench = EngineCoreBench(ranks=2)
    bench.step_raises()
    bench.command_recovery(epoch=1)
    bench.lose(1)
    assert bench.told_to_break == [0]
    bench.tell(facts.RanksStarted({1: 200}))
    bench.attach(1, pid=200)
    bench.effects.clear()
    bench.tell(facts.RecoveryFailed(ValueError("the peer did not come"), lost_ranks=()))
    assert bench.told_to_break == [1]
    assert bench.announced == []
    bench.acknowledge(0)
    assert bench.announced == []
    bench.acknowledge(1)
    assert len(bench.announced) == 1


def test_a_new_process_of_a_rank_that_was_told_to_break_is_told_again_in_the_same_epoch():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(0)
    assert bench.told_to_break == [1]
    bench.attach(1, pid=200)
    bench.effects.clear()
    bench.tell(m.PauseEngine(command_id="pause", epoch=0))
    assert bench.told_to_break == [1]


def test_a_rank_that_died_in_an_earlier_epoch_owes_no_acknowledgement():
    bench = EngineCoreBench(ranks=2, acknowledge_timeout_s=BOUND_S)
    bench.lose(1)
    bench.step_raises()
    bench.acknowledge(0)
    bench.command_recovery(epoch=1)
    bench.effects.clear()
    bench.tell(facts.RecoveryFailed(ValueError("before any rank was replaced"), lost_ranks=(1,)))
    assert bench.told_to_break == [0]
    bench.acknowledge(0)
    bench.wait(2 * BOUND_S)
    assert bench.killed == []


def test_a_repeated_first_report_of_a_process_changes_nothing_about_the_order_to_break():
    bench = EngineCoreBench(ranks=2)
    bench.rank_faults(1)
    bench.attach(0, pid=100)
    bench.attach(1, pid=101)
    bench.step_raises()
    assert bench.told_to_break == [0]


def test_a_pause_is_announced_again_only_when_ranks_have_acknowledged_a_later_break():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.PauseEngine(command_id="soft", epoch=0, soft=True))
    bench.step_raises(is_interrupt=True)
    assert len(bench.announced) == 1
    bench.wait(REANNOUNCE_S - 0.1)
    bench.tell(m.PauseEngine(command_id="hard", epoch=0))
    bench.wait(0.2)
    assert len(bench.announced) == 1
    bench.acknowledge(0)
    bench.acknowledge(1)
    assert [task.broken for task in bench.announced] == [False, True]


def test_a_report_of_a_process_that_has_not_introduced_itself_changes_nothing():
    bench = EngineCoreBench()
    assert bench.tell(m.RankFaulted(rank=1, pid=101, epoch=0, fault=a_fault(rank=1))) == []


def test_a_process_that_ended_before_its_first_report_is_not_taken_for_its_replacement():
    bench = EngineCoreBench()
    bench.tell(facts.RanksStarted({0: 200}))
    assert bench.machine.registry.unreported({0: 200}) == [0]
    bench.tell(facts.RanksStarted({0: 300}))
    bench.attach(0, pid=200)
    assert bench.machine.registry.unreported({0: 300}) == [0]
    bench.attach(0, pid=300)
    assert bench.machine.registry.unreported({0: 300}) == []


def test_the_present_process_is_found_when_its_report_overtakes_the_news_of_its_start():
    bench = EngineCoreBench()
    bench.attach(0, pid=200)
    bench.tell(facts.RanksStarted({0: 200}))
    assert bench.machine.registry.unreported({0: 200}) == []


def test_evidence_that_is_kept_after_the_rank_was_replaced_kills_no_new_process():
    bench = EngineCoreBench()
    bench.look(bench.stall(0, call=a_call()))
    bench.attach(0, pid=200)
    bench.keep_evidence()
    assert bench.killed == []


# ---- ranks that make no progress


def test_a_rank_without_peers_is_declared_hung_at_once():
    bench = EngineCoreBench()
    bench.look(bench.stall(0, call=a_call()))
    assert bench.killed == [], "the evidence comes first"
    bench.keep_evidence()
    assert bench.killed == [0]
    [fault] = bench.faults
    assert (fault.message, fault.phase, fault.step) == ("rank 0 stalled: no progress", Phase.FORWARD, 20)


def test_ranks_that_make_no_progress_are_not_declared_hung_at_the_first_look():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    assert (bench.told_to_break, bench.all_of(fx.KeepEvidence)) == ([0, 1], [])
    assert "rank(s) [0, 1] make no progress" in bench.all_of(fx.Log)[0].text
    bench.look(bench.stall(0), bench.stall(1))
    assert bench.all_of(fx.KeepEvidence) == []


def test_a_rank_that_leaves_its_step_once_collectives_break_only_waited():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0, call=a_call()), bench.stall(1, call=a_call()))
    bench.now += PROBE_S
    bench.look(bench.stall(0, call=a_call(2)), bench.stall(1, call=a_call()))
    assert [e.stall.rank for e in bench.all_of(fx.KeepEvidence)] == [1]
    assert bench.machine.pids_to_watch() == {0: 100}


def test_where_all_ranks_leave_their_step_none_is_declared_hung():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.acknowledge(0, 1)
    bench.step_raises(is_interrupt=True)
    assert bench.announced == [], "while a rank is searched"
    bench.now += PROBE_S
    bench.look()
    assert bench.all_of(fx.KeepEvidence) == []
    assert len(bench.announced) == 1
    assert not bench.machine.is_searching


def test_a_search_without_another_look_ends_in_its_bound():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.acknowledge(0, 1)
    bench.step_raises(is_interrupt=True)
    bench.wait(PROBE_S + SEARCH_MARGIN_S)
    assert len(bench.announced) == 1


def test_a_search_that_found_the_rank_ends_once_the_rank_is_killed():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.acknowledge(0)
    bench.now += PROBE_S
    bench.look(bench.stall(1))
    bench.keep_evidence()
    bench.lose(1)
    bench.step_raises()
    assert (bench.killed, len(bench.announced)) == ([1], 1)
    assert bench.announced[0].fault.message == "rank 1 stalled: no progress"


def test_a_stopped_process_is_declared_hung_without_breaking_anything_first():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(1, is_certain=True))
    assert bench.told_to_break == []
    bench.keep_evidence()
    assert bench.killed == [1]


def test_each_of_several_stopped_processes_is_killed_once_with_its_own_evidence():
    bench = EngineCoreBench(ranks=3)
    stalls = [bench.stall(rank, is_certain=True) for rank in (0, 2)]
    bench.look(*stalls)
    for stall in (stalls[0], stalls[0], stalls[1]):
        bench.tell(facts.EvidenceKept(stall))
    assert bench.killed == [0, 2]


def test_a_stopped_process_decides_a_search_at_once():
    bench = EngineCoreBench(ranks=2)
    bench.look(bench.stall(0), bench.stall(1))
    bench.look(bench.stall(1, is_certain=True))
    assert [e.stall.rank for e in bench.all_of(fx.KeepEvidence)] == [1]


def test_others_learn_their_deadlines_anew_once_a_rank_is_declared_hung():
    bench = EngineCoreBench()
    bench.look(bench.stall(0))
    assert len(bench.all_of(fx.RelearnDeadlines)) == 1


@pytest.mark.parametrize("whose", ["engine core", "rank"])
def test_where_collectives_cannot_be_rebuilt_nothing_is_broken_and_that_is_said_once(whose):
    bench = EngineCoreBench(ranks=2)
    if whose == "rank":
        bench.attach(1, 101, unrebuildable=("custom all-reduce",))
    for _ in range(5):
        bench.look(bench.stall(0), bench.stall(1), is_rebuildable=whose == "rank")
    assert [type(effect) for effect in bench.effects] == [fx.Log]


def test_a_rank_without_peers_needs_no_collectives_to_be_rebuilt():
    bench = EngineCoreBench()
    bench.look(bench.stall(0), is_rebuildable=False)
    assert bench.all_of(fx.KeepEvidence)


# ---- the registry of ranks


def test_a_rank_that_has_not_reported_is_missing():
    registry = RankRegistry()
    registry.note(a_report(1, 11))
    assert (registry.missing(2), registry.missing(1)) == ([0], [0])
    registry.note(a_report(0, 10))
    assert registry.missing(2) == []
    assert [report.pid for report in registry.reports(2)] == [10, 11]


def test_an_old_process_is_not_taken_for_the_new_one():
    registry = RankRegistry()
    registry.note(a_report(0, 10))
    assert registry.unreported({0: 20, 1: 21}) == [0, 1]
    registry.note(a_report(0, 20))
    assert registry.unreported({0: 20, 1: 21}) == [1]


# ---- armed faults


def spec(**about):
    return InjectionSpec(phase=Phase.FORWARD, **about)


def arm(bench, command_id="arm", **about):
    return bench.tell(m.ArmFault(command_id=command_id, spec=spec(**about)))


def test_a_fault_is_passed_on_to_its_rank_which_answers():
    bench = EngineCoreBench()
    assert arm(bench) == [fx.ArmRank(m.ArmWorkerFault(command_id="arm", spec=spec()))]
    bench.tell(m.WorkerAnswered(rank=0, command_id="arm"))
    assert bench.told_client == [m.EngineAnswered(engine_id=0, command_id="arm")]


def test_a_fault_of_an_engine_cores_phase_is_armed_there():
    bench = EngineCoreBench()
    armed = InjectionSpec(phase=Phase.SCHEDULE_START)
    bench.tell(m.ArmFault(command_id="arm", spec=armed))
    assert bench.effects[0] == fx.ArmEngineCore(armed)
    assert bench.told_client == [m.EngineAnswered(engine_id=0, command_id="arm")]


def refusals(bench):
    return [message.refused for message in bench.told_client]


def test_a_fault_is_refused_while_the_engine_core_starts_and_for_a_rank_that_does_not_exist():
    starting = EngineCoreBench(starting=True)
    arm(starting)
    assert refusals(starting) == ["the engine core is still starting"]
    bench = EngineCoreBench()
    arm(bench, rank=4)
    assert refusals(bench) == ["engine 0 has no rank 4"]


def test_a_fault_that_its_rank_does_not_accept_is_refused_and_not_armed_again():
    bench = EngineCoreBench()
    [effect] = arm(bench, request="poison")
    bench.tell(facts.ArmingUndelivered(effect.command))
    assert refusals(bench) == ["rank 0 did not accept the command"]
    assert bench.attach(0, 200) == []


def test_a_fault_of_no_request_that_its_rank_does_not_accept_is_refused():
    bench = EngineCoreBench()
    [effect] = arm(bench)
    bench.tell(facts.ArmingUndelivered(effect.command))
    assert refusals(bench) == ["rank 0 did not accept the command"]


def test_a_fault_of_a_request_is_armed_again_in_the_replacement_of_its_rank():
    bench = EngineCoreBench(ranks=2)
    arm(bench, "of the request", request="poison")
    arm(bench, "of the process")
    again = m.ArmWorkerFault(command_id="of the request", spec=spec(request="poison"))
    assert bench.attach(0, 200) == [fx.SendToRank(0, again)]
    assert bench.attach(1, 201) == []


def test_only_the_latest_faults_are_armed_again():
    bench = EngineCoreBench()
    for number in range(MAX_ARMED + 5):
        arm(bench, str(number), request="poison")
    again = [effect.message.command_id for effect in bench.attach(0, 200)]
    assert again == [str(number) for number in range(5, MAX_ARMED + 5)]


# ---- ranks of further nodes


def test_the_process_of_another_node_is_not_one_of_this_system():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.WorkerAttached(rank=1, pid=555, hooks=(), node=1))
    assert bench.machine.registry.pids() == {0: 100, 1: 555}
    assert bench.machine.registry.pids_here() == bench.machine.pids_to_watch() == {0: 100}
    bench.step_raises()
    bench.recover()
    [recovered] = [told for told in bench.told_client if isinstance(told, m.EngineRecovered)]
    assert recovered.worker_pids == (100,)


def test_a_rank_that_is_back_with_its_node_is_told_to_stop_and_lives_again():
    bench = EngineCoreBench(ranks=2)
    bench.tell(m.WorkerAttached(rank=1, pid=555, hooks=(), node=1))
    bench.tell(facts.RankLost(1, 555, "node 1 was silent"))
    assert bench.machine.registry.living() == {0}
    bench.acknowledge(0)
    bench.step_raises(is_interrupt=True)
    bench.command_recovery(epoch=3)
    bench.effects.clear()
    bench.tell(facts.RanksReturned({1: 555}))
    assert bench.told_ranks == [(1, m.BreakCollectives(epoch=2))]
    assert bench.machine.returning == {1}
    bench.acknowledge(1, epoch=2)
    assert bench.machine.returning == frozenset()
    assert bench.machine.registry.living() == {0, 1}
