"""One fault and its life: which reports and instructions have which effects."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core import messages as m
from holdfast.core.config import HoldfastConfig
from holdfast.core.effects import End, OrderRecovery, Publish, Send, Settle
from holdfast.core.errors import InstructionConflict, UnknownEngine
from holdfast.core.events import EventKind
from holdfast.core.faults import FaultClass, Phase, unresponsive
from holdfast.core.injection import InjectionSpec
from holdfast.core.states import EngineState
from support.instance_bench import AUTO, DEEP, EXTERNAL, NO_RESTARTS, SPEC, Bench, a_fault, is_affirming, kinds, states

# ---- the life of one fault


def test_an_engine_is_healthy_once_it_reported_what_it_attached_to():
    bench = Bench(attached=False)
    assert bench.view().state is EngineState.STARTING
    assert kinds(bench.attached()) == ["engine-attached"]
    view = bench.view()
    assert (view.state, view.pid, view.hooks, view.ranks) == (EngineState.HEALTHY, 7, ("h",), 1)
    assert bench.instance.view().ready


def test_auto_a_fault_is_published_the_engine_held_retried_and_healthy_again():
    bench = Bench()
    assert kinds(bench.faulted()) == ["fault-reported"]
    assert not bench.instance.view().ready
    held = bench.held()
    assert kinds(held) == ["engine-paused", "decision-made", "OrderRecovery", "recovery-started"]
    assert states(held) == [EngineState.PAUSED, EngineState.PAUSED, EngineState.RECOVERING]
    assert held[2] == OrderRecovery((0,), "own-1", 1, rebuild=False)
    bench.now += 1.5
    recovered = bench.recovered()
    assert kinds(recovered) == ["engine-recovered", "Settle"]
    assert recovered[1] == Settle("own-1")
    assert recovered[0].event.interruption_s == 1.5
    assert recovered[0].event.report.requests == 2
    view = bench.view()
    assert (view.state, view.epoch, view.recoveries, view.faults) == (EngineState.HEALTHY, 1, 1, 1)
    assert (view.fault, view.reason, view.last_error, view.last_command_id) == (None, None, None, "own-1")


def test_the_reason_of_a_decision_is_published_and_shown():
    bench = Bench()
    bench.faulted()
    bench.held()
    decided = next(e for e in bench.events if e.kind is EventKind.DECISION_MADE)
    assert decided.reason == bench.view().reason == "exception with state intact; retry 1 of 3"


def test_external_waits_for_an_instruction_and_follows_it():
    bench = Bench(EXTERNAL)
    bench.faulted()
    assert kinds(bench.held()) == ["engine-paused", "decision-made"]
    assert bench.view().state is EngineState.PAUSED
    assert [e for e in bench.tick(60.0) if not is_affirming(e)] == []
    assert kinds(bench.retry("from-outside")) == ["OrderRecovery", "recovery-started"]
    assert bench.recovered()[-1] == Settle("from-outside")
    assert bench.view().state is EngineState.HEALTHY


def test_external_ends_when_no_instruction_came_in_time():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.held()
    assert [e for e in bench.tick(119.9) if not is_affirming(e)] == []
    assert kinds(bench.tick(0.1)) == ["decision-made", "instance-defeated", "Send", "End"]
    assert "no instruction repaired it within 120 s" in bench.instance.view().defeat


def test_without_a_name_the_engine_that_stands_paused_is_retried():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.held(1)
    assert bench.retry(engine=None)[0].engine_ids == (1,)


def test_an_engine_that_stands_held_without_a_word_before_was_faulted_then():
    bench = Bench()
    assert kinds(bench.held())[:2] == ["fault-reported", "engine-paused"]
    assert bench.view().faults == 1


def test_an_engine_may_fault_before_it_attached_and_recovers_all_the_same():
    bench = Bench(attached=False)
    bench.faulted()
    bench.held()
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
    bench.held()
    for attempt in (1, 2):
        aborted = bench.aborted()
        assert kinds(aborted) == ["recovery-failed", "Settle", "decision-made", "OrderRecovery", "recovery-started"]
        assert aborted[1] == Settle(f"own-{attempt}", error="RuntimeError in engine 0, rank 0: again")
    assert kinds(bench.aborted())[-4:] == ["decision-made", "instance-defeated", "Send", "End"]
    assert "3 retries within 60 s did not last" in bench.instance.view().defeat
    assert bench.view().epoch == 3


def test_external_a_failed_recovery_stands_paused_again():
    bench = Bench(EXTERNAL)
    bench.held()
    bench.retry("first")
    assert kinds(bench.aborted()) == ["recovery-failed", "Settle", "decision-made"]
    assert (bench.view().state, bench.view().last_error) == (EngineState.PAUSED, a_fault(message="again").summary())
    bench.retry("second")
    bench.recovered()
    assert (bench.view().state, bench.view().epoch) == (EngineState.HEALTHY, 2)


def test_external_failed_recoveries_do_not_prolong_the_timeout():
    bench = Bench(EXTERNAL)
    bench.held()
    for command_id in ("a", "b"):
        bench.now += 55.0
        bench.retry(command_id)
        bench.aborted()
    assert kinds(bench.tick(10.0))[-1] == "End"


def test_standing_held_in_the_new_epoch_ends_the_command_whose_end_was_never_heard():
    bench = Bench(EXTERNAL)
    bench.held()
    bench.retry("cmd")
    held = bench.held()
    assert kinds(held) == ["recovery-failed", "Settle", "decision-made"]
    assert held[1] == Settle("cmd", error=a_fault().summary())
    assert bench.view().state is EngineState.PAUSED
    assert bench.recovered(command_id="cmd") == []


def test_a_fault_that_overtakes_the_report_of_a_recovery_is_not_forgotten():
    bench = Bench()
    bench.held()
    assert bench.faulted(fault=a_fault(message="next")) == []
    assert kinds(bench.recovered()) == ["engine-recovered", "Settle", "fault-reported"]
    assert (bench.view().state, bench.view().fault.message) == (EngineState.FAULTED, "next")
    assert kinds(bench.tick(AUTO.containment_timeout_s))[-1] == "End"


def test_a_fault_that_a_recovery_had_and_failed_of_is_not_reported_twice():
    bench = Bench()
    bench.held()
    bench.faulted()
    bench.aborted()
    assert kinds(bench.recovered()) == ["engine-recovered", "Settle"]


def test_retries_that_did_not_last_give_the_rank_that_failed_in_them_a_new_process():
    bench = Bench()
    for _ in range(AUTO.max_retries):
        bench.held()
        bench.recovered()
    bench.held()
    assert "3 retries within 60 s did not last" in bench.view().reason
    assert bench.all(OrderRecovery)[-1].replace == {0: (0,)}
    bench.recovered(replaced=(0,))
    assert (bench.view().state, bench.view().worker_restarts) == (EngineState.HEALTHY, 1)
    bench.held()
    assert bench.all(OrderRecovery)[-1].replace == {}  # what is retried now is retried in another process


def test_a_device_fault_in_a_recovery_restarts_its_rank_although_the_abort_looks_transient():
    bench = Bench()
    bench.held()
    bench.faulted(fault=DEEP)
    assert kinds(bench.aborted())[-2:] == ["OrderRecovery", "recovery-started"]
    assert bench.all(OrderRecovery)[-1].replace == {0: (0,)}


def test_a_device_fault_in_a_recovery_ends_it_where_workers_are_not_restarted():
    bench = Bench(NO_RESTARTS)
    bench.held()
    bench.faulted(fault=DEEP)
    assert kinds(bench.aborted())[-1] == "End"


def test_a_peer_s_transient_error_does_not_hide_a_device_error():
    bench = Bench(NO_RESTARTS)
    bench.faulted(fault=DEEP)
    assert kinds(bench.held())[-1] == "End"
    assert "illegal memory access" in bench.instance.view().defeat


def test_a_deeper_fault_that_comes_to_light_while_paused_is_decided_at_once():
    bench = Bench(EXTERNAL)
    bench.held()
    assert bench.faulted() == []
    assert kinds(bench.faulted(fault=DEEP)) == ["fault-reported", "decision-made"]
    assert bench.instance.view().defeat is None
    bench.retry()
    assert bench.all(OrderRecovery)[-1].replace == {0: (0,)}


def test_a_silence_that_comes_to_light_while_paused_ends_at_once():
    bench = Bench(EXTERNAL)
    bench.held()
    bench.faulted(fault=unresponsive(0, "no word"))
    assert bench.instance.view().defeat is not None


# ---- what changes nothing


def stale_reports(bench):
    for epoch in (0, 2, 99):
        yield bench.faulted(epoch=epoch)
        yield bench.held(epoch=epoch)
        yield bench.recovered(epoch=epoch)
        yield bench.aborted(epoch=epoch)


@pytest.mark.parametrize("state", ["healthy", "faulted", "paused", "recovering"])
def test_a_report_of_another_epoch_changes_nothing(state):
    bench = Bench(EXTERNAL)
    bench.held()
    bench.retry("cmd")  # epoch 1
    if state != "recovering":
        bench.recovered()
    if state in ("faulted", "paused"):
        bench.faulted()
    if state == "paused":
        bench.held()
    assert bench.view().state == state
    before = bench.instance.view()
    assert [effects for effects in stale_reports(bench) if effects] == []
    assert bench.instance.view() == before


@pytest.mark.parametrize("report", ["recovered", "aborted"])
def test_the_end_of_another_command_changes_nothing(report):
    bench = Bench(EXTERNAL)
    bench.held()
    bench.retry("new")
    before = bench.instance.view()
    assert getattr(bench, report)(command_id="old") == []
    assert bench.instance.view() == before


def test_an_id_used_again_is_not_ended_by_the_report_of_its_first_use():
    bench = Bench(EXTERNAL)
    for _ in range(2):
        bench.held()
        bench.retry("same")
        bench.recovered()
    bench.held()
    bench.retry("same")
    assert bench.recovered(command_id="same", epoch=2) == []
    assert bench.view().state is EngineState.RECOVERING


@pytest.mark.parametrize("fact", ["attached", "faulted", "held", "recovered", "aborted"])
def test_a_report_repeated_changes_nothing(fact):
    bench = Bench(EXTERNAL)
    steps = [("faulted", {"epoch": 0}), ("held", {"epoch": 0})]
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
    fact = m.EngineHeld(engine_id=9, epoch=0, fault=a_fault(9), unfinished_requests=0)
    assert bench.observe(fact) == bench.lost(9) == []
    assert bench.instance.view() == before


def test_after_the_end_nothing_changes_anything_on_any_engine():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.held(1)
    bench.lost(0)
    before = bench.instance.view()
    for engine in (0, 1):
        assert bench.attached(engine) == bench.faulted(engine) == bench.held(engine) == bench.lost(engine) == []
        assert bench.recovered(engine) == bench.aborted(engine) == []
        with pytest.raises(InstructionConflict, match="the instance has ended") as caught:
            bench.retry(engine=engine)
        assert caught.value.state == "dead"
        with pytest.raises(InstructionConflict):
            bench.arm()
    assert bench.tick(1e6) == []
    assert bench.instance.view() == before
    assert len(bench.all(End)) == 1


# ---- instructions


def test_two_commands_at_once_are_a_conflict_that_says_the_state():
    bench = Bench(EXTERNAL)
    bench.held()
    bench.retry("first")
    before = bench.instance.view()
    with pytest.raises(InstructionConflict, match="first is already under way") as caught:
        bench.retry("second")
    assert caught.value.state == "recovering"
    assert bench.instance.view() == before


@pytest.mark.parametrize("state", ["starting", "healthy", "faulted"])
def test_a_retry_of_what_is_not_paused_is_a_conflict_that_says_the_state(state):
    bench = Bench(EXTERNAL, attached=state != "starting")
    if state == "faulted":
        bench.faulted()
    with pytest.raises(InstructionConflict, match="there is nothing to retry") as caught:
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
    bench.held()
    for order in (bench.arm, bench.retry):
        with pytest.raises(InstructionConflict, match="the id same is already under way"):
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


def test_a_fault_after_which_the_engine_never_stands_held_ends_in_a_deadline():
    bench = Bench()
    bench.faulted()
    assert bench.tick(AUTO.containment_timeout_s - 0.1) == []
    assert kinds(bench.tick(0.1)) == ["decision-made", "instance-defeated", "Send", "End"]
    assert "did not stand still within 30 s" in bench.instance.view().defeat


def test_a_recovery_that_never_ends_ends_in_a_deadline_and_its_command_with_it():
    bench = Bench()
    bench.held()
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
        bench.held()
    assert bench.view().state == state
    assert kinds(bench.lost())[-3:] == ["instance-defeated", "Send", "End"]
    assert (bench.view().state, bench.instance.view().ready) == (EngineState.DEAD, False)
    assert bench.defeat.startswith("engine core 0 is gone: killed by signal 9")


def test_the_end_settles_the_commands_of_every_engine():
    bench = Bench(EXTERNAL, engines=(0, 1))
    bench.held(0)
    bench.retry("zero", 0)
    bench.arm("armed", InjectionSpec(phase=Phase.FORWARD, engine_id=1))
    bench.lost(1)
    assert {s.command_id for s in bench.all(Settle)} == {"zero", "armed"}


# ---- neighbours


def test_a_fault_and_its_recovery_leave_the_neighbour_as_it_was():
    bench = Bench(engines=(0, 1, 2))
    before = [bench.view(i) for i in (0, 2)]
    for step in (bench.faulted, bench.held, bench.aborted, bench.recovered):
        step(1)
        assert [bench.view(i) for i in (0, 2)] == before
    assert {e.event.engine_id for e in bench.all(Publish)[3:]} == {1}


def test_neighbours_recover_at_the_same_time_each_with_its_own_command():
    bench = Bench(engines=(0, 1))
    bench.held(0)
    bench.held(1)
    bench.recovered(1)
    assert [bench.view(i).state for i in (0, 1)] == [EngineState.RECOVERING, EngineState.HEALTHY]
    bench.recovered(0)
    assert [s.command_id for s in bench.all(Settle)] == ["own-2", "own-1"]


def test_silence_is_described_as_a_fault_that_a_retry_cannot_repair():
    assert unresponsive(1, "no reply").fault_class is FaultClass.UNRESPONSIVE


# ---- any order whatsoever

asked = st.sampled_from(["cmd-1", "cmd-2", "arm-1", "?"])  # nobody outside knows an id before it is made
texts = st.sampled_from(["own-1", "own-2", "own-3"]) | asked
engines = st.integers(0, 2)
epochs = st.integers(0, 4)
any_fault = st.builds(a_fault, engines, fault_class=st.sampled_from([FaultClass.TRANSIENT] * 4 + list(FaultClass)))
facts = st.one_of(
    st.builds(m.EngineAttached, engine_id=engines, pid=st.just(1), hooks=st.just(()), workers=st.just(())),
    st.builds(m.EngineFaulted, engine_id=engines, epoch=epochs, fault=any_fault),
    st.builds(m.EngineHeld, engine_id=engines, epoch=epochs, fault=any_fault, unfinished_requests=st.just(0)),
    st.builds(m.EngineRecovered, engine_id=engines, command_id=texts, epoch=epochs, report=st.just(m.RecoveryReport())),
    st.builds(m.RecoveryAborted, engine_id=engines, command_id=texts, epoch=epochs, fault=any_fault),
    st.builds(m.EngineAnswered, engine_id=engines, command_id=texts, refused=st.none() | st.just("no")),
)
happenings = st.one_of(
    facts,
    st.tuples(st.just("retry"), asked, st.none() | engines),
    st.tuples(st.just("arm"), asked, engines),
    st.tuples(st.just("restart"), asked, engines),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 0.1, 1.0, 5.0, 15.0, 200.0]), st.none()),
)


@settings(max_examples=400, deadline=None)
@given(story=st.lists(happenings, max_size=40), config=st.sampled_from([AUTO, EXTERNAL, NO_RESTARTS]))
def test_whatever_is_said_in_whatever_order_the_laws_of_an_instance_hold(story, config):
    bench = Bench(config, engines=(0, 1), attached=False)
    accepted = []
    for happening in story:
        match happening:
            case ("retry" | "arm" | "restart" as what, command_id, engine):
                try:
                    instruct(bench, what, command_id, engine)
                except (InstructionConflict, UnknownEngine):
                    continue
                accepted.append(command_id)
            case ("tick", after_s, _):
                bench.tick(after_s)
            case fact:
                bench.observe(fact)
    for _ in range(6):  # after silence long enough, every wait has ended
        bench.tick(config.worker_start_timeout_s + 250.0)
    accepted += [order.command_id for order in bench.all(OrderRecovery)]
    assert sorted(s.command_id for s in bench.all(Settle)) == sorted(_once(accepted, bench))
    assert [e.sequence for e in bench.events] == list(range(1, len(bench.events) + 1))
    assert [p.view.sequence for p in bench.all(Publish)] == [e.sequence for e in bench.events]
    assert len(bench.all(End)) == (bench.instance.view().defeat is not None)
    over = {EngineState.STARTING, EngineState.HEALTHY, EngineState.LEFT_OUT}
    open_states = {bench.view(i).state for i in (0, 1)} - over
    assert not open_states or bench.instance.view().defeat is not None


def instruct(bench, what, command_id, engine):
    match what:
        case "retry":
            bench.retry(command_id, engine)
        case "restart":
            bench.restart_workers(command_id, engine)
        case "arm":
            bench.arm(command_id, InjectionSpec(phase=Phase.FORWARD, engine_id=engine))


def _once(accepted, bench):
    """A retry from outside was counted when it was accepted and again when it was sent."""
    sent = list(dict.fromkeys(order.command_id for order in bench.all(OrderRecovery)))  # one may be for two groups
    arms = [s.message.command_id for s in bench.all(Send) if isinstance(s.message, m.ArmFault)]
    pauses = [s.message.command_id for s in bench.all(Send) if isinstance(s.message, m.PauseEngine)]
    unsent = [c for c in pauses if c.startswith(("cmd", "arm", "own", "?")) and c in accepted and c not in sent]
    assert set(accepted) == set(sent + arms + unsent)
    return sent + arms + unsent
