"""What the demo shows and how it ends: every picture from plain data, and 0 only when every law held."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from holdfast.bench.restart import Restart
from holdfast.bench.trial import Outcome, Window
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.cli import demo as demo_command
from holdfast.cli.demo import DemoOptions, _show
from holdfast.cli.demo_tables import comparison, event_lines, screen, stream_results
from holdfast.cli.demo_view import PlainView
from holdfast.core.errors import WorldError
from holdfast.core.faults import Phase

EVENTS: list[dict[str, Any]] = [
    {"kind": "fault-armed", "at": 99.9},
    {
        "kind": "fault-reported",
        "at": 100.0,
        "fault": {"error_type": "InjectedFault", "message": "ouch", "phase": "forward"},
    },
    {"kind": "decision-made", "at": 100.001, "reason": "retry 1 of 10"},
    {"kind": "engine-recovered", "at": 100.01, "report": {"requests": 8, "kept_blocks": 9, "evicted_blocks": 3}},
]


def answer(tokens: list[int], arrivals: list[float], finish: str | None = "length") -> History:
    return History(
        "answer 1", 0.0, token_ids=tokens, arrivals_s=arrivals, text="the\x1b[31m rope", finish_reason=finish
    )


def shown(picture: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(picture)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def outcome(observed: History) -> Outcome:
    verdict = compare_runs([answer([1, 2, 3], [1.0, 2.0, 3.0])], [observed])
    return Outcome(verdict, {"answer 1": 0.05}, 0.01, 0.0, tuple(EVENTS), verdict.reasons)


def view() -> tuple[PlainView, io.StringIO]:
    out = io.StringIO()
    return PlainView(Console(file=out, width=100)), out


@pytest.mark.parametrize(
    ("arrivals", "window", "state"),
    [
        ([], None, "waiting"),
        ([1.0], None, "flowing"),
        ([1.0], Window(2.0, float("inf")), "INTERRUPTED"),
        ([1.0, 2.5], Window(2.0, 2.2), "resumed after 1500 ms"),
    ],
)
def test_a_line_says_how_its_stream_is(arrivals: list[float], window: Window | None, state: str) -> None:
    """Waiting, flowing, interrupted, resumed."""
    text = shown(screen([answer([1] * len(arrivals), arrivals, finish=None)], [], window, 9))
    assert state in text
    assert len(text.splitlines()) == 1


def test_a_finished_stream_is_done_and_a_failed_one_failed() -> None:
    """Ends are told apart."""
    ended, failed = answer([1], [1.0]), answer([], [], finish=None)
    failed.error = "gone"
    text = shown(screen([ended, failed], [], None, 9))
    assert "done" in text
    assert "failed" in text


def test_words_cannot_steer_the_terminal() -> None:
    """Control characters of an answer are not printed."""
    assert "\x1b[31m" not in shown(screen([answer([1], [time.monotonic()])], [], None, 9))


def test_events_are_timed_from_the_fault() -> None:
    """Each line carries milliseconds since the report and what a person wants to know."""
    fault, decision, recovered = event_lines(EVENTS)
    assert "+0.0 ms" in fault
    assert "InjectedFault at forward: ouch" in fault
    assert "+1.0 ms" in decision
    assert "retry 1 of 10" in decision
    assert "8 requests rewound, 9 KV blocks kept, 3 evicted" in recovered


def test_results_stand_beside_the_restart() -> None:
    """Interruption, comparison and ratio are shown."""
    run = outcome(answer([1, 2, 3], [1.0, 2.0, 3.0]))
    restart = Restart(stop_s=0.5, start_s=19.0, first_token_s=0.5)
    assert "50 ms" in shown(stream_results(run))
    text = shown(comparison(run, restart))
    assert "20.0 s" in text
    assert "400 times shorter" in text


def test_a_changed_token_shows() -> None:
    """An answer that differs is not called equal."""
    assert "NO" in shown(stream_results(outcome(answer([1, 9, 3], [1.0, 2.0, 3.0]))))


@pytest.fixture
def options(tmp_path: Any) -> DemoOptions:
    return DemoOptions(8, 400, Phase.FORWARD, tmp_path / "model", tmp_path / "log")


def test_every_law_held_is_exit_0(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is a plain verdict."""
    monkeypatch.setattr(demo_command, "_perform", lambda *_: [])
    plain, out = view()
    assert _show(options, plain) == 0
    assert out.getvalue().startswith("HELD FAST: 8 of 8 answers")


def test_a_broken_law_is_exit_1_and_named(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is said, with the end of the server's log."""
    options.log.write_text("the last words")
    monkeypatch.setattr(demo_command, "_perform", lambda *_: ["answer 3: 2 tokens lost"])
    plain, out = view()
    assert _show(options, plain) == 1
    assert "FAILED: answer 3: 2 tokens lost" in out.getvalue()
    assert "the last words" in out.getvalue()


def test_a_server_that_does_not_start_is_exit_2(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is one message, never a traceback."""

    def fail(*_: object) -> list[str]:
        raise WorldError("the server ended with exit code 3")

    monkeypatch.setattr(demo_command, "_perform", fail)
    plain, out = view()
    assert _show(options, plain) == 2
    assert "exit code 3" in out.getvalue()


def test_ctrl_c_is_exit_130(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who stops it gets no traceback."""

    def interrupt(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_command, "_perform", interrupt)
    plain, out = view()
    assert _show(options, plain) == 130
    assert "Stopped" in out.getvalue()
