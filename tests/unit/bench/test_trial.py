"""A trial's judgement: it is lawful only when everything that can be asked was asked and answered well."""

from __future__ import annotations

import time
from typing import Any

from holdfast.bench.trial import judge, window_of
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load, StreamSpec


def answer(tokens: list[int], *, gap_s: float = 0.01, begin_s: float = 0.0) -> History:
    arrivals = [begin_s + gap_s * (n + 1) for n in range(len(tokens))]
    return History("one", begin_s, token_ids=tokens, arrivals_s=arrivals, finish_reason="length")


def load_with(history: History) -> Load:
    load = Load("http://127.0.0.1:1", [StreamSpec("one", "say")])
    load.histories[0].__dict__.update(history.__dict__)
    return load


def events(fault_s: float, recovered_s: float) -> list[dict[str, Any]]:
    """Events at times of the monotonic clock."""
    wall = time.time() - time.monotonic()
    return [
        {"kind": "fault-reported", "at": wall + fault_s},
        {"kind": "engine-recovered", "at": wall + recovered_s},
    ]


def test_equal_tokens_and_a_reported_recovery_are_lawful() -> None:
    """A run with its tokens, its fault and its recovery has no problem."""
    run = load_with(answer([1, 2, 3, 4], gap_s=0.5))
    outcome = judge([answer([1, 2, 3, 4])], run, events(0.6, 0.7), [])
    assert outcome.problems == ()
    assert outcome.waits_s() == [0.5]


def test_a_fault_that_never_came_proves_nothing() -> None:
    """Equal tokens without a fault are no success."""
    outcome = judge([answer([1, 2])], load_with(answer([1, 2])), [], [])
    assert outcome.problems == ("no fault was reported", "no recovery was reported")
    assert outcome.waits_s() == []


def test_what_was_wrong_before_stays_wrong() -> None:
    """Problems known already are kept."""
    outcome = judge([answer([1])], load_with(answer([1])), events(0.0, 0.1), ["spoilt"])
    assert outcome.problems == ("spoilt",)


def test_a_changed_token_is_a_problem() -> None:
    """The checker's reasons are problems of the trial."""
    outcome = judge([answer([1, 2])], load_with(answer([1, 9])), events(0.0, 0.1), [])
    assert not outcome.lawful
    assert outcome.verdict.changed == 1


def test_the_window_spans_all_faults_and_recoveries() -> None:
    """Two faults make one window, from the first to the end of the last recovery."""
    window = window_of([*events(1.0, 2.0), *events(3.0, 4.0)])
    assert window is not None
    assert abs(window.fault_s - 1.0) < 0.01
    assert abs(window.recovered_s - 4.0) < 0.01


def test_a_recovery_that_is_not_over_has_no_end() -> None:
    """Before the recovery every later wait counts."""
    window = window_of(events(1.0, 2.0)[:1])
    assert window is not None
    assert window.recovered_s == float("inf")
