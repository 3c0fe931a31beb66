"""An incident is read off the events: when it began, who stood still, whose fault it was, when it was over."""

from __future__ import annotations

import pytest

from holdfast.bench.incident import blast_radius, misreported, paused_s, rebuild_s, root_cause, window_of
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec
from support.incidents import event, fault, incident


def test_the_window_spans_all_faults_and_recoveries() -> None:
    """Two faults make one window, from the first to the end of the last recovery."""
    window = window_of([*incident(1.0, 2.0), *incident(3.0, 4.0)])
    assert window is not None
    assert window.fault_s == pytest.approx(1.0, abs=0.01)
    assert window.recovered_s == pytest.approx(4.0, abs=0.01)


def test_it_begins_where_the_fault_was_noticed() -> None:
    """Not when somebody was told."""
    window = window_of([fault(1.0, told_s=1.2), event("engine-recovered", 2.0)])
    assert window is not None
    assert window.fault_s == pytest.approx(1.0, abs=0.01)


def test_a_recovery_that_is_not_over_has_no_end() -> None:
    """Before the recovery every later wait counts."""
    window = window_of(incident(1.0, 2.0)[:1])
    assert window is not None
    assert window.recovered_s == float("inf")


def test_an_engine_that_only_paused_has_a_window_of_its_own() -> None:
    """It stood still because a peer of its lockstep group failed."""
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
    stood = [event("engine-paused", 1.02, 1), event("engine-paused", 1.07, 0)]
    later = [event("recovery-started", 1.1), event("engine-paused", 9.0)]
    assert paused_s([fault(1.0), *stood, *later]) == pytest.approx(0.07, abs=0.005)


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
    assert problem == "the cause was reported as engine 1 rank 0 at forward, it was engine 1 rank 1 at forward"


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
        ({0, 1}, {0}, ["engine 1 paused without sharing a collective with it"]),
        ({0}, {0, 1}, ["engine 1 of the lockstep group did not pause"]),
    ],
)
def test_exactly_the_lockstep_group_pauses(paused: set[int], group: set[int], problems: list[str]) -> None:
    """No independent engine, and no peer left running into a broken collective."""
    assert blast_radius([event("engine-paused", 1.0, one) for one in paused], frozenset(group)) == problems


def test_a_process_beside_the_engine_cores_makes_no_window() -> None:
    """No engine stands still for it."""
    gone = {"kind": "process-lost", "at": 1.0, "process": "coordinator", "reason": "it is gone"}
    assert window_of([gone]) is None
    window = window_of([gone, *incident(1.0, 2.0)])
    assert window is not None
    assert window.recovered_s == pytest.approx(2.0, abs=0.01)
