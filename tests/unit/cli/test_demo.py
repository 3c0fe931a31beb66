"""What the demo shows and how it ends: every picture from plain data, and 0 only when every law held."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer import BadParameter

from holdfast.bench.faulted_run import EndedAlone, Neighbours, RunResult
from holdfast.bench.harms import Harm
from holdfast.bench.restart import Restart
from holdfast.bench.topologies import MOE_EP, ONE, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.cli import demo as demo_command
from holdfast.cli.demo import DemoOptions, _show
from holdfast.cli.demo_tables import cost_table, event_lines, screen, stream_results
from holdfast.cli.demo_view import PlainView
from holdfast.cli.topology_options import choose_place
from holdfast.core.errors import WorldError
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from support.incidents import Event, event, fault, incident, loss

REPORT = {"requests": 8, "kept_blocks": 9, "evicted_blocks": 3, "rebuild_s": 0.21}
EVENTS = [
    event("fault-armed", 99.9),
    fault(100.0, rank=1, message="ouch"),
    event("decision-made", 100.001, reason="retry 1 of 10"),
    event("engine-paused", 100.004),
    event("engine-recovered", 100.01, report=REPORT),
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


def result(observed: History) -> RunResult:
    comparison = compare_runs([answer([1, 2, 3], [1.0, 2.0, 3.0])], [observed])
    return RunResult(comparison, {"answer 1": 0.05}, 0.01, 0.0, tuple(EVENTS), comparison.reasons)


def view() -> tuple[PlainView, io.StringIO]:
    out = io.StringIO()
    return PlainView(Console(file=out, width=100)), out


@pytest.mark.parametrize(
    ("arrivals", "events", "state"),
    [
        ([], [], "waiting"),
        ([1.0], [], "flowing"),
        ([1.0], [fault(2.0)], "INTERRUPTED"),
        ([1.0, 2.5], incident(2.0, 2.2), "resumed after 1500 ms"),
    ],
)
def test_a_line_says_how_its_stream_is(arrivals: list[float], events: list[Event], state: str) -> None:
    """Waiting, flowing, interrupted, resumed."""
    line, *_ = shown(screen([answer([1] * len(arrivals), arrivals, finish=None)], events, 9)).splitlines()
    assert state in line


def test_a_stream_of_an_independent_engine_keeps_flowing() -> None:
    """While those of the engine that failed are interrupted."""
    hurt, spared = (answer([1], [1.0], finish=None) for _ in range(2))
    hurt.engine_id, spared.engine_id = 0, 1
    first, second, *_ = shown(screen([hurt, spared], [fault(2.0, engine_id=0)], 9)).splitlines()
    assert "INTERRUPTED" in first
    assert "flowing" in second


def test_a_stream_of_a_lost_engine_core_has_moved_as_soon_as_a_token_comes() -> None:
    """Long before another process is in its place."""
    hurt, spared = (answer([1, 2], [1.0, 2.1], finish=None) for _ in range(2))
    hurt.engine_id, spared.engine_id = 0, 1
    first, second, *lines = shown(screen([hurt, spared], loss(2.0, 22.0, 0)[:1], 9)).splitlines()
    assert "moved after 1100 ms" in first
    assert "flowing" in second
    assert "engine lost" in lines[0]
    waiting, *_ = shown(screen([answer([1], [1.0], finish=None)], loss(2.0, 22.0, 0)[:1], 9)).splitlines()
    assert "INTERRUPTED" in waiting


def test_another_process_in_its_place_is_told_with_how_long_it_took() -> None:
    """Timed from the loss."""
    events = loss(2.0, 22.0, 1)
    *_, line = event_lines([*events[:-1], {**events[-1], "interruption_s": 20.0}])
    assert "+20000.0 ms" in line
    assert "another process serves in its place after 20.0 s" in line


def test_a_finished_stream_is_done_and_a_failed_one_failed() -> None:
    """Ends are told apart."""
    ended, failed = answer([1], [1.0]), answer([], [], finish=None)
    failed.error = "gone"
    text = shown(screen([ended, failed], [], 9))
    assert "done" in text
    assert "failed" in text


def test_of_a_long_reason_the_beginning_and_the_decision_are_shown() -> None:
    told = "a rank did not answer in time: " + "so and so " * 40 + "; worker restart 1 of 20"
    [_, line] = event_lines([fault(100.0), event("decision-made", 100.1, reason=told)])
    assert "a rank did not answer" in line
    assert line.endswith("worker restart 1 of 20")
    assert len(line) < 200


def test_words_cannot_steer_the_terminal() -> None:
    """Control characters of an answer are not printed."""
    assert "\x1b[31m" not in shown(screen([answer([1], [time.monotonic()])], [], 9))


def test_events_are_timed_from_the_fault() -> None:
    """Each line carries milliseconds since the fault and what a person wants to know."""
    told, decision, paused, recovered = event_lines(EVENTS)
    assert "+0.0 ms" in told
    assert "InjectedFault in rank 1 at forward: ouch" in told
    assert "+1.0 ms" in decision
    assert "retry 1 of 10" in decision
    assert "+4.0 ms" in paused
    assert "rebuilt in 210 ms, 8 requests rewound, 9 KV blocks kept, 3 evicted" in recovered


def test_a_librarys_paragraph_is_cut_short() -> None:
    """What a peer says whose collective broke is long, and the same every time."""
    [line] = event_lines([fault(1.0, message="Connection closed by peer. " * 20)])
    assert "Connection closed by peer." in line
    assert line.endswith("…")
    assert len(line) < 160


def test_events_of_several_engines_are_told_apart() -> None:
    """With one engine its number would be noise."""
    lines = event_lines([*EVENTS, event("engine-paused", 100.005, 1)])
    assert "engine 0" in lines[0]
    assert "engine 1" in lines[-1]
    assert not any("engine 0" in line for line in event_lines(EVENTS))


def test_a_process_beside_the_engine_cores_is_told_by_its_name() -> None:
    """It has no engine."""
    gone = {"kind": "process-lost", "at": 100.0, "process": "coordinator", "reason": "it is gone"}
    [*_, line] = event_lines([*EVENTS, gone])
    assert "coordinator  process lost" in line


def test_results_stand_beside_the_restart() -> None:
    """Interruption, comparison and ratio are shown."""
    run = result(answer([1, 2, 3], [1.0, 2.0, 3.0]))
    restart = Restart(stop_s=0.5, start_s=19.0, first_token_s=0.5)
    assert "50 ms" in shown(stream_results(run))
    text = shown(cost_table(run, restart))
    assert "20.0 s" in text
    assert "400 times shorter" in text
    assert "every rank paused after 4 ms, collectives rebuilt in 210 ms" in " ".join(text.replace("│", " ").split())


def test_what_the_other_engines_answers_felt_stands_beside_it() -> None:
    """Their longest gap, and what they feel without a fault."""
    felt = Neighbours(streams=4, longest_gap_s=0.011, fault_free_p999_s=0.013, fault_free_longest_gap_s=0.017)
    run = replace(result(answer([1, 2, 3], [1.0, 2.0, 3.0])), neighbours=felt, engines={"answer 1": 1})
    text = " ".join(shown(cost_table(run, Restart(stop_s=1, start_s=1, first_token_s=1))).replace("│", " ").split())
    assert "meanwhile 11 ms; without a fault 99.9 % within 13 ms, longest 17 ms" in text
    assert "engine" in shown(stream_results(run))


def test_a_changed_token_shows() -> None:
    """An answer that differs is not called equal."""
    assert "NO" in shown(stream_results(result(answer([1, 9, 3], [1.0, 2.0, 3.0]))))


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    return DemoOptions(ONE, InjectionSpec(phase=Phase.FORWARD), streams=8, tokens=400, log=tmp_path / "log")


@pytest.mark.parametrize(
    ("topology", "phase", "place"),
    [
        (ONE, Phase.FORWARD, "'forward'"),
        (TP2, Phase.FORWARD, "'forward' in rank 1"),
        (TP2, Phase.SCHEDULE_END, "'schedule-end'"),
        (MOE_EP, Phase.DP_SYNC, "'dp-sync' of engine 1"),
    ],
    ids=["one", "worker", "engine core", "lockstep"],
)
def test_where_it_hurts_is_said_in_words(topology: Topology, phase: Phase, place: str, options: DemoOptions) -> None:
    """Only what the topology has several of."""
    engine_id, rank = topology.places[-1]
    spec = InjectionSpec(phase=phase, engine_id=engine_id, rank=rank)
    assert replace(options, topology=topology, injection=spec).place == place


def test_the_last_rank_is_hurt_unless_another_is_named() -> None:
    """One that does not exist is a usage error."""
    assert choose_place(TP2, None, None) == (0, 1)
    assert choose_place(MOE_EP, 0, None) == (0, 0)
    with pytest.raises(BadParameter, match="tp2 has engines 0 to 0, each with ranks 0 to 1"):
        choose_place(TP2, 1, None)


def test_every_law_held_is_exit_0(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line is a plain conclusion."""
    monkeypatch.setattr(demo_command, "_perform", lambda *_: [])
    plain, out = view()
    assert _show(options, plain) == 0
    assert out.getvalue().startswith("HELD FAST: 8 of 8 answers")


def test_the_readme_shows_what_the_demo_prints(options: DemoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event lines and the last line of the README are the demo's own."""
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    monkeypatch.setattr(demo_command, "_perform", lambda *_: [])
    plain, out = view()
    _show(options, plain)
    assert out.getvalue().strip() in readme
    report = {"requests": 8, "kept_blocks": 16, "evicted_blocks": 0, "tokens_to_recompute": 8}
    told = {"at": 1.0, "error_type": "InjectedFault", "rank": 0, "phase": "forward", "message": "injected fault"}
    incident = [
        {"kind": "fault-reported", "at": 1.0012, "engine_id": 0, "fault": told},
        {"kind": "engine-paused", "at": 1.0072, "engine_id": 0, "fault": told},
        {"kind": "recovery-started", "at": 1.0074, "engine_id": 0},
        {"kind": "engine-recovered", "at": 1.0096, "engine_id": 0, "report": report},
    ]
    assert [line for line in event_lines(incident) if line not in readme] == []


def test_of_a_request_that_makes_the_server_fail_the_verdict_tells(
    options: DemoOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_command, "_perform", lambda *_: [])
    plain, out = view()
    assert _show(replace(options, injection=Harm.POISON.injection(Phase.FORWARD, 0, 0, after_steps=9)), plain) == 0
    assert out.getvalue().startswith("HELD FAST: 7 of 8 answers equal the fault-free run")
    assert "the one that made the server fail ended alone" in " ".join(out.getvalue().split())


def test_the_answer_that_ended_alone_stands_below_the_others() -> None:
    ended = replace(result(answer([1, 2, 3], [1.0, 2.0, 3.0])), ended_alone=(EndedAlone("two", 1, 3, "told why"),))
    assert "two" in shown(stream_results(ended)) and "1 of 3" in shown(stream_results(ended))
    cost = " ".join(shown(cost_table(ended, Restart(stop_s=1.0, start_s=2.0, first_token_s=0.1))).split())
    assert "two, ended alone" in cost and "faults until then: 1; told: told why" in cost


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
    assert "Interrupted" in out.getvalue()
