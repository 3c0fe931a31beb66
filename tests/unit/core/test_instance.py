"""One fault and its life: which reports have which effects."""

import pytest
from msgspec import UNSET

from holdfast.core.errors import CommandConflict
from holdfast.core.faults.faults import FaultClass, unresponsive
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.effects import BeginRecovery, End, Publish, Settle
from holdfast.core.protocol.events import EventKind
from holdfast.core.states import EngineState
from support.instance_bench import AUTO, DEEP, EXTERNAL, NO_RESTARTS, Bench, a_fault, is_keepalive, kinds, states

# ---- the life of one fault


def test_an_engine_is_healthy_once_it_reported_what_it_attached_to():
    bench = Bench(attached=False)
    assert bench.view().state is EngineState.STARTING
    assert kinds(bench.attached()) == ["engine-attached"]
    view = bench.view()
    assert (view.state, view.pid, view.hooks, view.ranks) == (EngineState.HEALTHY, 7, ("h",), 1)
    assert bench.instance.view().ready


def test_auto_a_fault_is_published_the_engine_paused_retried_and_healthy_again():
    bench = Bench()
    assert kinds(bench.faulted()) == ["fault-reported"]
    assert not bench.instance.view().ready
    held = bench.paused_by_fault()
    assert kinds(held) == ["engine-paused", "decision-made", "BeginRecovery", "recovery-started"]
    assert states(held) == [EngineState.PAUSED, EngineState.PAUSED, EngineState.RECOVERING]
    assert held[2] == BeginRecovery((0,), "own-1", 1, rebuild=False)
    bench.now += 1.5
    recovered = bench.recovered()
    assert kinds(recovered) == ["engine-recovered", "Settle"]
    assert recovered[1] == Settle("own-1")
    assert recovered[0].event.interruption_s == 1.5
    assert recovered[0].event.report.requests == 2
    view = bench.view()
    assert (view.state, view.epoch, view.recoveries, view.faults) == (EngineState.HEALTHY, 1, 1, 1)
    assert (view.fault_info, view.reason, view.last_error, view.last_command_id) == (UNSET, None, UNSET, "own-1")


def test_the_reason_of_a_decision_is_published_and_shown():
    bench = Bench()
    bench.faulted()
    bench.paused_by_fault()
    decided = next(e for e in bench.events if e.kind is EventKind.DECISION_MADE)
    assert decided.reason == bench.view().reason == "exception with state intact; retry 1 of 3"


def test_external_waits_for_an_instruction_and_follows_it():
    bench = Bench(EXTERNAL)
    bench.faulted()
    assert kinds(bench.paused_by_fault()) == ["engine-paused", "decision-made"]
    assert bench.view().state is EngineState.PAUSED
    assert [e for e in bench.tick(60.0) if not is_keepalive(e)] == []
    assert kinds(bench.retry("from-outside")) == ["BeginRecovery", "recovery-started"]
    assert bench.recovered()[-1] == Settle("from-outside")
    assert bench.view().state is EngineState.HEALTHY


def test_external_ends_when_no_instruction_came_in_time():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    assert [e for e in bench.tick(119.9) if not is_keepalive(e)] == []
    assert kinds(bench.tick(0.1)) == ["decision-made", "instance-defeated", "Send", "End"]
    assert "no command repaired the fault within 120 s" in bench.instance.view().defeat


def test_without_a_name_the_engine_that_stands_paused_is_retried():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.paused_by_fault(1)
    assert bench.retry(engine=None)[0].engine_ids == (1,)


def test_an_engine_that_is_paused_without_a_report_before_was_faulted_then():
    bench = Bench()
    assert kinds(bench.paused_by_fault())[:2] == ["fault-reported", "engine-paused"]
    assert bench.view().faults == 1


def test_an_engine_may_fault_before_it_attached_and_recovers_all_the_same():
    bench = Bench(attached=False)
    bench.faulted()
    bench.paused_by_fault()
    bench.recovered()
    assert bench.view().state is EngineState.HEALTHY
    assert kinds(bench.attached()) == ["engine-attached"]
    assert (bench.view().state, bench.view().hooks) == (EngineState.HEALTHY, ("h",))


def test_attaching_twice_says_nothing_new():
    bench = Bench()
    assert bench.attached(pid=9) == []
    assert bench.view().pid == 7


# ---- a fault in a recovery


def test_auto_retries_a_failed_recovery_until_the_intensity_is_exceeded():
    bench = Bench(NO_RESTARTS)
    bench.paused_by_fault()
    aborted = bench.aborted()
    assert kinds(aborted) == ["recovery-failed", "Settle", "decision-made", "BeginRecovery", "recovery-started"]
    assert aborted[1] == Settle("own-1", error="RuntimeError in engine 0, rank 0: again")
    assert kinds(bench.aborted()) == ["recovery-failed", "Settle", "decision-made"]  # the second was in vain as well
    assert kinds(bench.tick(after_s=1.0)) == ["decision-made", "BeginRecovery", "recovery-started"]
    assert kinds(bench.aborted())[-4:] == ["decision-made", "instance-defeated", "Send", "End"]
    assert "3 retries within 60 s did not last" in bench.instance.view().defeat
    assert bench.view().epoch == 3


def test_external_a_failed_recovery_stands_paused_again():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("first")
    assert kinds(bench.aborted()) == ["recovery-failed", "Settle", "decision-made"]
    assert (bench.view().state, bench.view().last_error) == (EngineState.PAUSED, a_fault(message="again").summary())
    bench.retry("second")
    bench.recovered()
    assert (bench.view().state, bench.view().epoch) == (EngineState.HEALTHY, 2)


def test_external_failed_recoveries_do_not_prolong_the_timeout():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    for command_id in ("a", "b"):
        bench.now += 55.0
        bench.retry(command_id)
        bench.aborted()
    assert kinds(bench.tick(10.0))[-1] == "End"


def test_a_pause_in_the_new_epoch_ends_the_command_whose_end_was_never_reported():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("cmd")
    held = bench.paused_by_fault()
    assert kinds(held) == ["recovery-failed", "Settle", "decision-made"]
    assert held[1] == Settle("cmd", error=a_fault().summary())
    assert bench.view().state is EngineState.PAUSED
    assert bench.recovered(command_id="cmd") == []


def test_a_fault_that_overtakes_the_report_of_a_recovery_is_not_forgotten():
    bench = Bench()
    bench.paused_by_fault()
    assert bench.faulted(fault=a_fault(message="next")) == []
    assert kinds(bench.recovered()) == ["engine-recovered", "Settle", "fault-reported"]
    assert (bench.view().state, bench.view().fault_info) == (EngineState.FAULTED, a_fault(message="next").summary())
    assert kinds(bench.tick(AUTO.containment_timeout_s))[-1] == "End"


def test_a_fault_that_a_recovery_had_and_failed_of_is_not_reported_twice():
    bench = Bench()
    bench.paused_by_fault()
    bench.faulted()
    bench.aborted()
    assert kinds(bench.recovered()) == ["engine-recovered", "Settle"]


def test_retries_that_did_not_last_give_the_rank_that_failed_in_them_a_new_process():
    bench = Bench()
    for _ in range(AUTO.max_retries):
        bench.paused_by_fault()
        bench.recovered()
    bench.paused_by_fault()
    assert "3 retries within 60 s did not last" in bench.view().reason
    assert bench.all(BeginRecovery)[-1].replace == {0: (0,)}
    bench.recovered(replaced=(0,))
    assert (bench.view().state, bench.view().worker_restarts) == (EngineState.HEALTHY, 1)
    bench.paused_by_fault()
    assert bench.all(BeginRecovery)[-1].replace == {}  # what is retried now is retried in another process


def test_a_device_fault_in_a_recovery_restarts_its_rank_although_the_abort_looks_transient():
    bench = Bench()
    bench.paused_by_fault()
    bench.faulted(fault=DEEP)
    assert kinds(bench.aborted())[-2:] == ["BeginRecovery", "recovery-started"]
    assert bench.all(BeginRecovery)[-1].replace == {0: (0,)}


def test_a_device_fault_in_a_recovery_ends_it_where_workers_are_not_restarted():
    bench = Bench(NO_RESTARTS)
    bench.paused_by_fault()
    bench.faulted(fault=DEEP)
    assert kinds(bench.aborted())[-1] == "End"


def test_a_peer_s_transient_error_does_not_hide_a_device_error():
    bench = Bench(NO_RESTARTS)
    bench.faulted(fault=DEEP)
    assert kinds(bench.paused_by_fault())[-1] == "End"
    assert "illegal memory access" in bench.instance.view().defeat


def test_a_deeper_fault_that_comes_to_light_while_paused_is_decided_at_once():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    assert bench.faulted() == []
    assert kinds(bench.faulted(fault=DEEP)) == ["fault-reported", "decision-made"]
    assert bench.instance.view().defeat is None
    bench.retry()
    assert bench.all(BeginRecovery)[-1].replace == {0: (0,)}


def test_a_silence_that_comes_to_light_while_paused_ends_at_once():
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.faulted(fault=unresponsive(0, "no word"))
    assert bench.instance.view().defeat is not None


# ---- what changes nothing


def stale_reports(bench):
    for epoch in (0, 2, 99):
        yield bench.faulted(epoch=epoch)
        yield bench.paused_by_fault(epoch=epoch)
        yield bench.recovered(epoch=epoch)
        yield bench.aborted(epoch=epoch)


@pytest.mark.parametrize("state", ["healthy", "faulted", "paused", "recovering"])
def test_a_report_of_another_epoch_changes_nothing(state):
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("cmd")  # epoch 1
    if state != "recovering":
        bench.recovered()
    if state in ("faulted", "paused"):
        bench.faulted()
    if state == "paused":
        bench.paused_by_fault()
    assert bench.view().state == state
    before = bench.instance.view()
    assert [effects for effects in stale_reports(bench) if effects] == []
    assert bench.instance.view() == before


@pytest.mark.parametrize("report", ["recovered", "aborted"])
def test_the_end_of_another_command_changes_nothing(report):
    bench = Bench(EXTERNAL)
    bench.paused_by_fault()
    bench.retry("new")
    before = bench.instance.view()
    assert getattr(bench, report)(command_id="old") == []
    assert bench.instance.view() == before


def test_an_id_used_again_is_not_ended_by_the_report_of_its_first_use():
    bench = Bench(EXTERNAL)
    for _ in range(2):
        bench.paused_by_fault()
        bench.retry("same")
        bench.recovered()
    bench.paused_by_fault()
    bench.retry("same")
    assert bench.recovered(command_id="same", epoch=2) == []
    assert bench.view().state is EngineState.RECOVERING


@pytest.mark.parametrize("fact", ["attached", "faulted", "paused_by_fault", "recovered", "aborted"])
def test_a_report_repeated_changes_nothing(fact):
    bench = Bench(EXTERNAL)
    steps = [("faulted", {"epoch": 0}), ("paused_by_fault", {"epoch": 0})]
    if fact in ("recovered", "aborted"):
        steps.append((fact, {"epoch": 1}))
    for name, about in steps:
        if name in ("recovered", "aborted"):
            bench.retry("cmd")
        getattr(bench, name)(**about)
        before = bench.instance.view()
        assert getattr(bench, name)(**about) == []
        assert bench.attached() == []
        assert bench.instance.view() == before


def test_a_report_of_an_unknown_engine_changes_nothing():
    bench = Bench()
    before = bench.instance.view()
    fact = m.EnginePaused(engine_id=9, epoch=0, fault=a_fault(9), unfinished_requests=0)
    assert bench.observe(fact) == bench.lost(9) == []
    assert bench.instance.view() == before


def test_after_the_end_nothing_changes_anything_on_any_engine():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.paused_by_fault(1)
    bench.lost(0)
    before = bench.instance.view()
    for engine in (0, 1):
        assert (
            bench.attached(engine) == bench.faulted(engine) == bench.paused_by_fault(engine) == bench.lost(engine) == []
        )
        assert bench.recovered(engine) == bench.aborted(engine) == []
        with pytest.raises(CommandConflict, match="the instance has ended") as caught:
            bench.retry(engine=engine)
        assert caught.value.state == "dead"
        with pytest.raises(CommandConflict):
            bench.arm()
    assert bench.tick(1e6) == []
    assert bench.instance.view() == before
    assert len(bench.all(End)) == 1


# ---- neighbours


def test_a_fault_and_its_recovery_leave_the_neighbour_as_it_was():
    bench = Bench(engines=(0, 1, 2))
    before = [bench.view(i) for i in (0, 2)]
    for step in (bench.faulted, bench.paused_by_fault, bench.aborted, bench.recovered):
        step(1)
        assert [bench.view(i) for i in (0, 2)] == before
    assert {e.event.engine_id for e in bench.all(Publish)[3:]} == {1}


def test_neighbours_recover_at_the_same_time_each_with_its_own_command():
    bench = Bench(engines=(0, 1))
    bench.paused_by_fault(0)
    bench.paused_by_fault(1)
    bench.recovered(1)
    assert [bench.view(i).state for i in (0, 1)] == [EngineState.RECOVERING, EngineState.HEALTHY]
    bench.recovered(0)
    assert [s.command_id for s in bench.all(Settle)] == ["own-2", "own-1"]


def test_silence_is_described_as_a_fault_that_a_retry_cannot_repair():
    assert unresponsive(1, "no reply").fault_class is FaultClass.UNRESPONSIVE
