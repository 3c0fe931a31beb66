"""Every fault becomes one incident, with cause, decisions, cost and the next step; the instance is the real one."""

import msgspec
import pytest
from msgspec import UNSET

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import FaultClass
from holdfast.core.instance import incident_records
from holdfast.core.instance.incident_records import IncidentRecords, newest_first
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import RestartEngine
from holdfast.core.protocol.effects import Publish
from holdfast.core.protocol.events import Event, EventKind
from holdfast.core.protocol.incidents import Outcome, is_incident_id, summary_of
from support.groups_bench import a_pair
from support.instance_bench import AUTO, EXTERNAL, Bench, a_fault

RESTARTS = HoldfastConfig(max_engine_restarts=3)


def incidents_of(bench, records=None):
    """Return every incident as it last was, in the order of their beginning."""
    records = records or IncidentRecords("holdfast-x", "1.0")
    latest = {}
    for effect in bench.effects:
        if isinstance(effect, Publish):
            latest |= {incident.incident_id: incident for incident in records.take(effect.event, effect.view)}
    return list(latest.values())


def test_an_exception_becomes_one_incident_with_cause_decision_cost_and_next_step():
    bench = Bench(AUTO)
    bench.faulted(fault=a_fault(rank=0, stack=("a.py:1 f", "b.py:2 g"), full_text="a prompt"))
    bench.paused_by_fault()
    bench.recovered(report=m.RecoveryReport(requests=8, tokens_to_recompute=40, rewind_s=0.25, restore_s=0.5))
    [incident] = incidents_of(bench)
    assert incident.outcome is Outcome.REPAIRED and incident.closed_at == 0.0
    assert (incident.engines, incident.process) == ((0,), None)
    assert (incident.instance, incident.version) == ("holdfast-x", "1.0")
    assert incident.cause.startswith("RuntimeError in engine 0, rank 0")
    assert [d.figures.action for d in incident.decisions] == ["retry"] == [incident.action]
    assert incident.decisions[0].reason
    assert incident.faults[0].stack == ("a.py:1 f", "b.py:2 g")
    assert b"a prompt" not in msgspec.json.encode(incident)
    assert (incident.requests_rewound, incident.tokens_recomputed, incident.requests_failed) == (8, 40, 0)
    assert incident.interruption_s is not None
    assert (incident.phases.contain, incident.phases.decide) == (0.0, 0.0)
    assert (incident.phases.repair, incident.phases.restore) == (0.25, 0.5)
    assert incident.next_step.startswith("no action is needed")
    kinds = [entry.kind for entry in incident.timeline]
    assert kinds[0] is EventKind.FAULT_REPORTED and kinds[-1] is EventKind.ENGINE_RECOVERED
    assert is_incident_id(incident.incident_id)
    assert summary_of(incident).cause == incident.cause


def test_two_faults_after_each_other_are_two_incidents_and_faults_of_peers_are_one():
    pair = a_pair()
    pair.faulted(0)
    pair.faulted(1, fault=a_fault(1, fault_class=FaultClass.COMMUNICATOR))
    [incident] = incidents_of(pair)
    assert incident.engines == (0, 1) and incident.outcome is Outcome.OPEN
    assert "engine 0" in incident.cause
    bench = Bench(AUTO)
    for _ in range(2):
        bench.faulted()
        bench.paused_by_fault()
        bench.recovered()
    assert [i.outcome for i in incidents_of(bench)] == [Outcome.REPAIRED] * 2


def test_a_broken_collective_alone_is_still_told_as_the_cause():
    bench = Bench(AUTO)
    bench.faulted(fault=a_fault(fault_class=FaultClass.COMMUNICATOR, rank=None, phase=None))
    [incident] = incidents_of(bench)
    assert incident.cause.startswith("RuntimeError in engine 0: ")
    assert incident.next_step.startswith("wait: a repair is under way")


def test_a_recovery_that_fails_belongs_to_the_incident():
    bench = Bench(AUTO)
    bench.faulted()
    bench.paused_by_fault()
    bench.aborted(fault=a_fault(message="again"))
    bench.recovered()
    [incident] = incidents_of(bench)
    assert [f.message for f in incident.faults][-1] == "again"
    assert len(incident.decisions) == 2 and incident.outcome is Outcome.REPAIRED


def test_an_incident_that_waits_for_an_operator_names_the_command():
    bench = Bench(EXTERNAL)
    bench.faulted()
    bench.paused_by_fault()
    [incident] = incidents_of(bench)
    assert incident.outcome is Outcome.OPEN and incident.action == "await-instruction"
    assert "holdfast apply retry --engine 0" in incident.next_step


def test_a_pause_and_a_restart_by_an_operator_are_no_incidents():
    bench = Bench(EXTERNAL)
    bench.pause()
    assert incidents_of(bench) == []
    bench = Bench(RESTARTS)
    bench.did(bench.instance.submit(RestartEngine(command_id="c", engine_id=0), bench.now))
    assert incidents_of(bench) == []


def test_a_lost_engine_core_is_an_incident_with_the_decision_before_the_loss():
    bench = Bench(RESTARTS)
    bench.now += 1.0
    bench.did(bench.instance.lost(0, "killed by SIGKILL", bench.now))
    bench.now += 6.0
    bench.attached(0, pid=9)
    [incident] = incidents_of(bench)
    assert "SIGKILL" in incident.cause and incident.action == "restart-engine"
    assert incident.outcome is Outcome.REPAIRED and incident.interruption_s == 6.0
    assert incident.phases.repair == 6.0 and incident.phases.contain is None


def test_an_engine_core_that_is_left_out_says_how_to_start_it_now():
    bench = Bench(HoldfastConfig(max_engine_restarts=0), engines=(0, 1))
    bench.did(bench.instance.lost(0, "killed", bench.now))
    [incident] = incidents_of(bench)
    assert incident.outcome is Outcome.LEFT_OUT
    assert "holdfast apply restart-engine --engine 0" in incident.next_step


def test_the_end_of_the_instance_ends_every_open_incident():
    bench = Bench(AUTO)
    bench.did(bench.instance.lost(0, "killed", bench.now))
    [incident] = incidents_of(bench)
    assert incident.outcome is Outcome.DEFEATED and incident.next_step.startswith("start the server again")
    bench = Bench(AUTO)
    bench.faulted()
    bench.did(bench.instance.lost(0, "killed", bench.now))
    assert [i.outcome for i in incidents_of(bench)] == [Outcome.DEFEATED]
    records, view = IncidentRecords(), Bench(AUTO).instance.view()
    defeated = Event(sequence=9, at=0.0, kind=EventKind.INSTANCE_DEFEATED, reason="no process", instance_id="x")
    [alone] = records.take(defeated, view)
    assert "-instance-" in alone.incident_id and alone.cause == "no process"


def test_a_lost_process_beside_the_engine_cores_is_an_incident():
    bench = Bench(AUTO)
    bench.did(bench.instance.process_attached("API server 1", 5))
    bench.did(bench.instance.process_lost("API server 1", "killed", bench.now, "", 5))
    bench.did(bench.instance.process_attached("coordinator", 5))
    bench.now += 2.0
    bench.did(bench.instance.process_returned("API server 1", bench.now, 6))
    [incident] = incidents_of(bench)
    assert (incident.process, incident.engines, incident.outcome) == ("API server 1", (), Outcome.REPAIRED)
    assert incident.interruption_s == 2.0 and "API-server-1" in incident.incident_id


def test_what_is_found_out_about_requests_belongs_to_the_incident_also_after_its_end():
    bench = Bench(AUTO)
    ended = {"epoch": 0, "reason": "it fails alone"}
    bench.observe(m.RequestEnded(engine_id=0, request_id="early", incident="before-any", **ended))
    assert incidents_of(bench) == []
    bench.faulted()
    bench.observe(m.RequestEnded(engine_id=0, request_id="r", incident="told-1", **ended))
    bench.paused_by_fault()
    bench.recovered()
    bench.observe(m.RequestEnded(engine_id=0, request_id="s", incident="told-2", **{**ended, "epoch": 1}))
    [incident] = incidents_of(bench)
    assert incident.told_as == ("told-1", "told-2") and incident.requests_failed == 2
    assert incident.outcome is Outcome.REPAIRED


@pytest.mark.parametrize(
    ("fault_class", "said"),
    [(FaultClass.DEVICE, "nvidia-smi"), (FaultClass.UNRESPONSIVE, "stacks"), (FaultClass.NUMERICAL, "weights")],
)
def test_the_class_of_the_fault_decides_what_to_do_next(fault_class, said):
    bench = Bench(AUTO)
    bench.faulted(fault=a_fault(fault_class=fault_class, rank=0))
    bench.paused_by_fault()
    bench.recovered()
    [incident] = incidents_of(bench)
    assert said in incident.next_step


def test_events_that_were_dropped_leave_no_incident_open():
    bench = Bench(AUTO)
    bench.faulted()
    bench.paused_by_fault()
    bench.recovered()
    records = IncidentRecords()
    published = [e for e in bench.effects if isinstance(e, Publish)]
    first = next(e for e in published if e.event.kind is EventKind.FAULT_REPORTED)
    [opened] = records.take(first.event, first.view)
    assert records.open_ids == {opened.incident_id}
    later = msgspec.structs.replace(first.event, kind=EventKind.STANDBYS_CHANGED, sequence=99, fault=None)
    [closed] = records.take(later, published[-1].view)
    assert closed.outcome is Outcome.REPAIRED and records.open_ids == frozenset()


def test_events_of_unknown_engine_cores_and_of_the_instance_are_of_no_incident():
    records, view = IncidentRecords(), Bench(AUTO).instance.view()
    for engine_id in (None, 77):
        event = Event(sequence=1, at=0.0, kind=EventKind.FAULT_REPORTED, engine_id=engine_id)
        assert records.take(event, view) == []


def test_an_incident_is_bounded_and_counts_what_is_left_out(monkeypatch):
    monkeypatch.setattr(incident_records, "MAX_TIMELINE", 1)
    monkeypatch.setattr(incident_records, "MAX_DECISIONS", 0)
    bench = Bench(AUTO)
    bench.faulted()
    bench.paused_by_fault()
    [incident] = incidents_of(bench)
    assert len(incident.timeline) == 1 and incident.decisions == ()
    assert incident.left_out >= 3


def test_a_decision_without_figures_names_no_action():
    records, view = IncidentRecords(), Bench(AUTO).instance.view()
    for kind in (EventKind.DECISION_MADE, EventKind.ENGINE_LOST):
        changed = records.take(Event(sequence=1, at=0.0, kind=kind, engine_id=0), view)
    assert changed[0].action == ""


def test_incidents_are_ordered_by_their_number():
    incidents = incidents_of(Bench(AUTO)) or []
    bench = Bench(AUTO)
    bench.faulted()
    [one] = incidents_of(bench)
    two = msgspec.structs.replace(one, number=2)
    assert newest_first([*incidents, one, two]) == [two, one]


def test_the_stack_of_a_fault_is_in_no_published_event():
    event = Event(sequence=1, at=0.0, kind=EventKind.FAULT_REPORTED, fault=a_fault(stack=("a.py:1 f",)))
    assert event.without_stack().fault.stack is UNSET
    plain = Event(sequence=1, at=0.0, kind=EventKind.ENGINE_PAUSED)
    assert plain.without_stack() is plain
