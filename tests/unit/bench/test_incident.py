"""An incident is read from the events: begin, paused engines, root cause, end."""

from __future__ import annotations

import pytest

from holdfast.bench.incident import (
    MOVED_WITHIN_S,
    blast_radius,
    felt_window,
    misreported,
    paused_s,
    rebuild_s,
    root_cause,
    window_of,
)
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from support.incidents import Event, event, fault, incident, loss


def test_the_window_spans_all_faults_and_recoveries() -> None:
    """Two faults make one window, from the first to the end of the last recovery."""
    window = window_of([*incident(1.0, 2.0), *incident(3.0, 4.0)])
    assert window is not None
    assert window.fault_s == pytest.approx(1.0, abs=0.01)
    assert window.recovered_s == pytest.approx(4.0, abs=0.01)


def test_it_begins_where_the_fault_was_noticed() -> None:
    """The time of detection counts, not the time of the report."""
    window = window_of([fault(1.0, told_s=1.2), event("engine-recovered", 2.0)])
    assert window is not None
    assert window.fault_s == pytest.approx(1.0, abs=0.01)


def test_a_recovery_that_is_not_over_has_no_end() -> None:
    """Before the recovery every later wait counts."""
    window = window_of(incident(1.0, 2.0)[:1])
    assert window is not None
    assert window.recovered_s == float("inf")


def test_an_engine_that_only_paused_has_a_window_of_its_own() -> None:
    """The engine paused because a peer of its lockstep group failed."""
    peer = [event("pause-ordered", 1.1, 1), event("engine-paused", 1.2, 1), event("engine-recovered", 1.9, 1)]
    window = window_of([*incident(1.0, 2.0), *peer], engine_id=1)
    assert window is not None
    assert (window.fault_s, window.recovered_s) == pytest.approx((1.1, 1.9), abs=0.01)


def test_an_engine_to_which_nothing_happened_has_none() -> None:
    """Being armed is no incident."""
    assert window_of([event("fault-armed", 0.5, 1), *incident(1.0, 2.0)], engine_id=1) is None


def test_the_cause_is_who_failed_and_not_who_noticed_first() -> None:
    """A peer whose collective broke may be faster to tell."""
    broken = fault(1.01, engine_id=0, fault_class="communicator")
    own = fault(1.0, engine_id=1, told_s=1.05)
    assert root_cause([broken, own]) is own
    assert root_cause([broken]) is broken
    assert root_cause([]) is None


def test_the_pause_lasts_until_the_last_rank_stands() -> None:
    """Measured from the fault; what is paused again after the recovery began belongs to another incident."""
    paused = [event("engine-paused", 1.02, 1), event("engine-paused", 1.07, 0)]
    later = [event("recovery-started", 1.1), event("engine-paused", 9.0)]
    assert paused_s([fault(1.0), *paused, *later]) == pytest.approx(0.07, abs=0.005)


def test_nobody_paused_is_no_duration() -> None:
    """Not zero seconds."""
    assert paused_s([fault(1.0)]) is None
    assert paused_s([event("engine-paused", 1.0)]) is None


def test_the_slowest_rebuild_counts() -> None:
    """Engines rebuild side by side."""
    reports = [
        event("engine-recovered", 2.0, one, report={"rebuild_s": seconds}) for one, seconds in enumerate((0.1, 0.3))
    ]
    assert rebuild_s(reports) == 0.3
    assert rebuild_s([fault(1.0)]) is None


def test_the_rank_and_the_phase_that_failed_are_told() -> None:
    """An operator reads them."""
    at_rank = InjectionSpec(phase=Phase.FORWARD, engine_id=1, rank=1)
    assert misreported([fault(1.0, 1, 1)], at_rank) == []
    [problem] = misreported([fault(1.0, 1, 0)], at_rank)
    assert problem == "the root cause was reported as engine 1 rank 0 at forward, but was engine 1 rank 1 at forward"


def test_a_fault_of_an_engine_core_has_no_rank() -> None:
    """Even though one was named when it was armed."""
    spec = InjectionSpec(phase=Phase.DP_SYNC, engine_id=1, rank=0)
    assert misreported([fault(1.0, 1, None, phase="dp-sync")], spec) == []
    assert misreported([fault(1.0, 1, 0, phase="dp-sync")], spec) != []


@pytest.mark.parametrize(
    ("paused", "group", "problems"),
    [
        ({0}, {0}, []),
        ({0, 1}, {0, 1}, []),
        ({0, 1}, {0}, ["engine 1 paused without sharing a collective with the faulty engine"]),
        ({0}, {0, 1}, ["engine 1 of the lockstep group did not pause"]),
    ],
)
def test_exactly_the_lockstep_group_pauses(paused: set[int], group: set[int], problems: list[str]) -> None:
    """No independent engine, and no peer left running into a broken collective."""
    assert blast_radius([event("engine-paused", 1.0, one) for one in paused], frozenset(group)) == problems


def test_a_process_beside_the_engine_cores_makes_no_window() -> None:
    """No engine pauses for it."""
    gone = {"kind": "process-lost", "at": 1.0, "process": "coordinator", "reason": "it is gone"}
    assert window_of([gone]) is None
    window = window_of([gone, *incident(1.0, 2.0)])
    assert window is not None
    assert window.recovered_s == pytest.approx(2.0, abs=0.01)


def test_a_lost_engine_core_has_recovered_once_another_process_serves() -> None:
    """Alone in its group there is no recovery to be told."""
    window = window_of(loss(1.0, 21.0, 1), engine_id=1)
    assert window is not None
    assert (window.fault_s, window.recovered_s) == pytest.approx((1.0, 21.0), abs=0.01)


@pytest.mark.parametrize(
    ("engines", "beside", "end_s"),
    [
        ({0, 1}, [], 1.0 + MOVED_WITHIN_S),
        ({1}, [], 21.0),
        ({0, 1}, [event("engine-paused", 1.1, 0)], 21.0),
    ],
    ids=["a sibling", "alone", "in lockstep"],
)
def test_streams_of_a_lost_engine_core_wait_for_another_only_without_a_sibling(
    engines: set[int], beside: list[Event], end_s: float
) -> None:
    """A sibling takes them at once; a peer that had to pause cannot."""
    window = felt_window([*loss(1.0, 21.0, 1), *beside], 1, engines)
    assert window is not None
    assert window.recovered_s == pytest.approx(end_s, abs=0.01)


def test_a_refilled_standby_makes_no_window() -> None:
    """It is told with its engine, to which nothing happened."""
    assert window_of([event("standbys-changed", 1.0)]) is None


def test_a_group_waits_for_a_replacement_but_its_pause_does_not() -> None:
    """A replacement is paused from its start; the figure is the pause of the other engines."""
    lost, *back = loss(1.0, 21.0, 1)
    events = [lost, event("engine-paused", 1.1, 0), *back, event("engine-paused", 21.1, 1)]
    assert paused_s(events) == pytest.approx(0.1, abs=0.005)
    assert blast_radius(events[:2], frozenset({0, 1})) == []


KILL = InjectionSpec(phase=Phase.SCHEDULE_END, kind=FaultKind.KILL, engine_id=1)


@pytest.mark.parametrize(
    ("events", "injection", "problems"),
    [
        (loss(1.0, 2.0, 1), KILL, []),
        (loss(1.0, 2.0, 0), KILL, ["engine core 0 was lost", "the loss of engine core 1 was not reported"]),
        ([fault(1.0, 1, 1), *loss(1.0, 2.0, 1)], InjectionSpec(phase=Phase.FORWARD, engine_id=1, rank=1), None),
    ],
    ids=["reported", "another one", "of a worker's fault"],
)
def test_exactly_the_engine_core_that_was_killed_is_lost(
    events: list[Event], injection: InjectionSpec, problems: list[str] | None
) -> None:
    """A fault of a worker must not take it along."""
    assert misreported(events, injection) == (["engine core 1 was lost"] if problems is None else problems)
