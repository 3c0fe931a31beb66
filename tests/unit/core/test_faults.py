"""How deep a fault goes, and how an exception is described."""

import itertools

import pytest

from holdfast.core.faults.faults import (
    Fault,
    FaultClass,
    Phase,
    deeper,
    hung,
    unresponsive,
)

BY_DEPTH = [
    FaultClass.COMMUNICATOR,
    FaultClass.TRANSIENT,
    FaultClass.NUMERICAL,
    FaultClass.UNKNOWN,
    FaultClass.UNRESPONSIVE,
    FaultClass.DEVICE,
    FaultClass.WORKER_LOST,
]


def fault(fault_class=FaultClass.TRANSIENT, **about):
    return Fault(fault_class=fault_class, error_type="E", message="m", engine_id=0, **about)


@pytest.mark.parametrize(
    ("about", "summary"),
    [
        ({}, "E in engine 0: m"),
        ({"rank": 0}, "E in engine 0, rank 0: m"),
        ({"rank": 1, "phase": "forward"}, "E in engine 0, rank 1 at forward: m"),
        ({"place": "model.py:7 forward"}, "E in engine 0: m (model.py:7 forward)"),
    ],
)
def test_a_summary_says_what_where_and_why(about, summary):
    assert fault(**about).summary() == summary


@pytest.mark.parametrize(("first", "second"), [*itertools.product(FaultClass, FaultClass)])
def test_of_two_faults_the_first_decides_unless_the_other_goes_deeper(first, second):
    known, other = fault(first), fault(second)
    assert (deeper(known, other) is other) is (BY_DEPTH.index(second) > BY_DEPTH.index(first))


def test_a_first_fault_decides_by_itself():
    only = fault()
    assert deeper(None, only) is only


def test_a_consequence_never_hides_a_cause_whichever_comes_first():
    for cause in set(FaultClass) - {FaultClass.COMMUNICATOR}:
        assert deeper(fault(cause), fault(FaultClass.COMMUNICATOR)).fault_class is cause
        assert deeper(fault(FaultClass.COMMUNICATOR), fault(cause)).fault_class is cause


def test_a_transient_fault_never_hides_one_that_a_retry_cannot_repair():
    for other in set(FaultClass) - {FaultClass.COMMUNICATOR}:
        assert deeper(fault(other), fault(FaultClass.TRANSIENT)).fault_class is other
        assert deeper(fault(FaultClass.TRANSIENT), fault(other)).fault_class is other


def test_a_phase_belongs_to_the_worker_or_to_the_engine_core():
    in_worker = [p for p in Phase if p.in_worker]
    steps = [Phase.STEP_START, Phase.FORWARD, Phase.STEP_END, Phase.SAMPLE_START, Phase.SAMPLE_END]
    assert in_worker == [*steps, Phase.REBUILD]


def test_a_process_that_does_not_answer_is_unresponsive_and_says_what_is_missing():
    assert unresponsive(2, "no answer within 5 s") == Fault(
        fault_class=FaultClass.UNRESPONSIVE, error_type="PeerSilent", message="no answer within 5 s", engine_id=2
    )


def test_a_hung_rank_is_unresponsive_where_and_when_it_was_seen():
    assert hung(2, 1, "stalled", 7.0, phase="sampling", step=3) == Fault(
        fault_class=FaultClass.UNRESPONSIVE,
        error_type="PeerSilent",
        message="rank 1 stalled",
        engine_id=2,
        rank=1,
        phase="sampling",
        step=3,
        at=7.0,
    )
