"""Full texts of exceptions: never in an event, and in the view for those who ask."""

import msgspec

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.instance.state import MAX_FULL_TEXTS
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.events import FullText
from support.instance_bench import EXTERNAL, Bench

PROMPT = "Dear doctor, my password is hunter2"


def a_fault(text=PROMPT, at=5.0):
    return Fault(
        fault_class=FaultClass.TRANSIENT,
        error_type="ValueError",
        message="the prompt <...> is too long",
        engine_id=0,
        rank=1,
        at=at,
        place="model.py:7 forward",
        full_text=text,
    )


def paused(bench, fault, epoch=0):
    report = m.EnginePaused(engine_id=0, epoch=epoch, fault=fault, unfinished_requests=0)
    return bench.observe(report)


def test_the_full_text_of_a_fault_is_in_no_event_and_once_in_the_view():
    bench = Bench(EXTERNAL)
    bench.observe(m.EngineFaulted(engine_id=0, epoch=0, fault=a_fault()))
    paused(bench, a_fault())
    assert [event.fault.full_text for event in bench.events if event.fault] == [msgspec.UNSET] * 2
    assert PROMPT not in msgspec.json.encode(bench.events).decode()
    told = FullText(engine_id=0, rank=1, at=5.0, error_type="ValueError", place="model.py:7 forward", text=PROMPT)
    assert bench.instance.view().full_texts == (told,)


def test_the_latest_full_texts_are_kept():
    bench = Bench(EXTERNAL)
    for number in range(MAX_FULL_TEXTS + 2):
        bench.instance._state.keep_full_text(a_fault(str(number)))
    kept = [each.text for each in bench.instance.view().full_texts]
    assert kept == [str(number) for number in range(2, MAX_FULL_TEXTS + 2)]


def test_a_report_of_another_epoch_leaves_no_text():
    bench = Bench(EXTERNAL)
    paused(bench, a_fault(), epoch=7)
    assert bench.instance.view().full_texts == ()
