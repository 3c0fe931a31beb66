from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from holdfast.api.formats import describe_event
from holdfast.api.notify import log_event
from holdfast.core.faults.redaction import WITHHELD
from holdfast.core.protocol.commands import Credential, Giver, Pause, RestartEngine, Resume, Retry
from holdfast.core.protocol.events import Event, EventKind
from support.control_plane import MemoryControl, some_fault


def test_a_recovered_fault_reads_as_a_story() -> None:
    control = MemoryControl().attach()
    control.obedient = True
    control.break_down()
    control.now = 0.043
    control.submit(Retry(command_id="c0ffee"))
    assert [describe_event(e) for e in control.events] == [
        "engine 0 is protected",
        "engine 0 faulted: InjectedFault in engine 0, rank 0 at forward: injected fault",
        "engine 0 is paused",
        "engine 0: waiting up to 120 s for a command "
        "[action=await-instruction rung=0 class=transient rank=0 policy=external epoch=0]",
        "engine 0 recovering, epoch 1 (command c0ffee)",
        "engine 0 recovered after 0.043 s: 8 requests rewound, 5 blocks kept, 2 evicted, 40 tokens to compute again",
    ]


def test_a_pause_by_operator_reads_as_a_story() -> None:
    control = MemoryControl(((0, 1),)).attach()
    control.obedient = True
    control.submit(Pause(command_id="c0ffee", engine_ids=(1,)))
    control.submit(Resume(command_id="cafe", engine_ids=(0,)))
    assert [describe_event(e) for e in control.events[2:-2]] == [
        "engine 0 is told to pause: ordered by operator (command c0ffee)",
        "engine 1 is told to pause: ordered by operator (command c0ffee)",
        "engine 0 is paused",
        "engine 1 is paused",
        "engine 0: paused by operator; waiting for resume [action=await-instruction rung=0 policy=external epoch=0]",
        "engine 0 recovering, epoch 1 (command cafe)",
        "engine 1 recovering, epoch 1 (command cafe)",
    ]


@pytest.mark.parametrize(
    ("giver", "said"),
    [
        (
            Giver(credential=Credential.TOKEN_FROM_FILE, address="10.0.0.1", idempotency_key="night-7"),
            "given from 10.0.0.1 by token-from-file, idempotency key night-7",
        ),
        (Giver(credential=Credential.SAME_USER, uid=1000), "given from user 1000 by same-user"),
        (Giver(credential=Credential.TOKEN_MADE_AT_START), "given from an unknown address by token-made-at-start"),
    ],
)
def test_the_line_of_a_command_says_who_gave_the_command(giver: Giver, said: str) -> None:
    control = MemoryControl(((0,), (1,))).attach()
    control.submit(Pause(command_id="c0ffee", engine_ids=(0,), given_by=giver))
    control.submit(RestartEngine(command_id="cafe", engine_id=1, given_by=giver))
    paused, lost = [describe_event(e) for e in control.events[2:4]]
    assert paused == f"engine 0 is told to pause: ordered by operator (command c0ffee, {said})"
    assert lost == f"engine 1: engine core 1 is restarted: ordered by operator (command cafe, {said})"


@pytest.mark.parametrize(("rebuild_s", "said"), [(0.25, True), (0.00001, False), (0.0, False)])
def test_a_rebuild_is_told_where_there_was_one(rebuild_s: float, said: bool) -> None:
    control = MemoryControl().attach()
    control.obedient = True
    control.break_down().submit(Retry(command_id="c0ffee"))
    recovered = control.events[-1]
    assert recovered.report is not None
    report = msgspec.structs.replace(recovered.report, rebuild_s=rebuild_s)
    line = describe_event(msgspec.structs.replace(recovered, report=report))
    assert ("collectives rebuilt in 0.250 s" in line) is said


def test_the_last_line_says_why_the_instance_ends(caplog: pytest.LogCaptureFixture) -> None:
    control = MemoryControl().attach().defeat()
    with caplog.at_level(logging.INFO, "holdfast"):
        log_event(control.events[-1], control.view())
    assert caplog.records[-1].levelno == logging.ERROR
    assert caplog.messages[-1].startswith("giving up: a rank did not answer in time")


def test_every_event_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    control = MemoryControl().attach().break_down()
    control.submit(Retry(command_id="c0ffee"))
    control.abort()
    with caplog.at_level(logging.INFO, "holdfast"):
        for event in control.events:
            log_event(event, control.view())
    assert len(caplog.messages) == len(control.events)
    assert not any("\n" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("kind", "about", "line"),
    [
        (
            EventKind.PROCESS_LOST,
            {"reason": "coordinator was lost: exit code -9"},
            "coordinator was lost: exit code -9",
        ),
        (EventKind.PROCESS_RESTARTED, {"interruption_s": 3.25}, "coordinator is another process, 3.2 s after its loss"),
        (EventKind.INSTANCE_DEFEATED, {"reason": "it is gone"}, "giving up: it is gone"),
    ],
)
def test_a_process_beside_the_engine_cores_is_named(kind: EventKind, about: dict[str, Any], line: str) -> None:
    assert describe_event(Event(sequence=1, at=0.0, kind=kind, process="coordinator", **about)) == line


def test_what_is_found_out_about_requests_is_told_without_what_they_say(caplog: pytest.LogCaptureFixture) -> None:
    suspected = Event(sequence=1, at=0.0, kind=EventKind.REQUESTS_SUSPECTED, engine_id=0, suspects=4, reason="2 run")
    ended = Event(
        sequence=2,
        at=0.0,
        kind=EventKind.REQUEST_ENDED,
        engine_id=0,
        request_id="cmpl-7",
        incident="now-engine0-epoch3",
        reason="it fails alone",
    )
    assert describe_event(suspected) == "engine 0: 2 run (4 suspected)"
    line = "engine 0: request 'cmpl-7' is ended with an error (incident now-engine0-epoch3): it fails alone"
    assert describe_event(ended) == line
    with caplog.at_level(logging.INFO, "holdfast"):
        log_event(ended, MemoryControl().attach().view())
    assert caplog.records[-1].levelno == logging.WARNING


def test_what_is_remembered_of_a_guilty_request_is_told_with_its_incident() -> None:
    event = Event(sequence=1, at=0.0, kind=EventKind.REQUEST_REMEMBERED, reason="it is remembered", incident="i1")
    assert describe_event(event) == "it is remembered (incident i1)"


def test_what_has_no_engine_says_so_by_leaving_it_out() -> None:
    event = Event(sequence=1, at=0.0, kind=EventKind.PROCESS_LOST, process="api-server-1")
    assert msgspec.json.decode(msgspec.json.encode(event)) == {
        "sequence": 1,
        "at": 0.0,
        "kind": "process-lost",
        "process": "api-server-1",
    }
    assert msgspec.json.decode(msgspec.json.encode(event), type=Event) == event


def test_a_fault_whose_text_is_held_back_says_where_the_whole_text_is() -> None:
    for message in ("the prompt <...> is too long", WITHHELD):
        fault = msgspec.structs.replace(some_fault(), message=message)
        event = Event(sequence=1, at=0.0, kind=EventKind.FAULT_REPORTED, engine_id=0, fault=fault)
        assert describe_event(event).endswith(f"{message}; `holdfast status --full-texts` shows the whole text")
