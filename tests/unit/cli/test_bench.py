"""`holdfast bench`: documents as tables and as JSON, and exit codes that a script can trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from holdfast.bench.machine import describe_machine
from holdfast.bench.overhead import METRICS, Burst, OverheadDocument, Pair, ratio_of
from holdfast.bench.recovery import RecoveryDocument, Trial
from holdfast.bench.restart import Restart
from holdfast.chaos.processes import SessionUsage
from holdfast.cli import bench
from holdfast.core.errors import WorldError

RESTART = Restart(stop_s=1.0, start_s=18.0, first_token_s=1.0)


def trial(*waits_s: float, problems: tuple[str, ...] = ()) -> Trial:
    return Trial(
        scenario="forward pass",
        phase="forward",
        load="short-prompts",
        interruption_median_s=waits_s[0],
        interruption_max_s=max(waits_s),
        interruptions_s=waits_s,
        fault_free_longest_gap_s=0.01,
        client_lag_s=0.0,
        interrupted_streams=len(waits_s),
        streams=len(waits_s),
        lost_tokens=len(problems),
        repeated_tokens=0,
        changed_tokens=0,
        recovery_report=None,
        problems=problems,
    )


def recovery_document(*trials: Trial) -> RecoveryDocument:
    return RecoveryDocument(
        benchmark="recovery",
        version=1,
        machine=describe_machine(),
        streams=8,
        tokens_per_stream=200,
        server_arguments=(),
        client_scheduled_at_once=True,
        trials=trials,
        usage=(SessionUsage(1.0, 2, 3, 4),),
        restart=RESTART,
        restart_total_s=RESTART.total_s,
        interruption_median_s=0.02,
        interruption_max_s=0.04,
        lost_tokens=0,
        repeated_tokens=0,
        changed_tokens=0,
        restart_to_median_interruption=1000.0,
        restart_to_max_interruption=500.0,
        lawful=not any(one.problems for one in trials),
    )


def overhead_document() -> OverheadDocument:
    burst = Burst(tokens_per_s=100, inter_token_p50_ms=8, inter_token_p99_ms=20, server_cpu_ms_per_token=1)
    pairs = (Pair(first="off", off=burst, on=burst),)
    return OverheadDocument(
        benchmark="overhead",
        version=1,
        machine=describe_machine(),
        streams=8,
        tokens_per_stream=400,
        server_arguments=(),
        client_scheduled_at_once=False,
        pairs=pairs,
        ratios=tuple(ratio_of(metric, pairs) for metric in METRICS),
        problems=(),
    )


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "make_dense_model", lambda folder: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def invoke(monkeypatch: pytest.MonkeyPatch, name: str, answer: Any, *arguments: str) -> Any:
    def measure(_settings: object) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(bench, f"measure_{name}", measure)
    return CliRunner().invoke(bench.app, [name, *arguments])


def test_repetitions_of_a_scenario_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row per scenario, its median and maximum over all runs, and the ratio below."""
    result = invoke(monkeypatch, "recovery", recovery_document(trial(0.02, 0.03), trial(0.02, 0.05)))
    assert result.exit_code == 0
    [row] = [line for line in result.stdout.splitlines() if "forward pass" in line]
    assert "2" in row
    assert "50 ms" in row
    assert "1000 times shorter" in result.stdout


def test_a_problem_is_shown_and_is_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lost something is no success."""
    result = invoke(monkeypatch, "recovery", recovery_document(trial(0.02, problems=("answer 1: 1 tokens lost",))))
    assert result.exit_code == 1
    assert "answer 1: 1 tokens lost" in result.stdout


@pytest.mark.parametrize("name", ["recovery", "overhead"])
def test_json_is_the_whole_document(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--json` prints nothing but the document, and `--output` writes the same."""
    document = recovery_document(trial(0.02)) if name == "recovery" else overhead_document()
    file = tmp_path / "deep" / "figures.json"
    result = invoke(monkeypatch, name, document, "--json", "--output", str(file))
    assert json.loads(result.stdout)["benchmark"] == name
    assert file.read_text() == result.stdout


def test_overhead_is_a_table_of_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every metric has its row."""
    result = invoke(monkeypatch, "overhead", overhead_document())
    assert result.exit_code == 0
    for name in ("tokens/s", "token gap p50, ms", "token gap p99, ms", "server CPU ms/token"):
        assert name in result.stdout


def test_a_server_that_does_not_start_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is exit 2 without a traceback."""
    result = invoke(monkeypatch, "overhead", WorldError("the server ended with exit code 3"))
    assert result.exit_code == 2
    assert "exit code 3" in result.stderr


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who stops it gets no traceback."""
    assert invoke(monkeypatch, "recovery", KeyboardInterrupt()).exit_code == 130


def test_a_misspelt_scenario_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started for a word in vain."""
    result = invoke(monkeypatch, "recovery", AssertionError("was started"), "--scenario", "chunky")
    assert result.exit_code == 2
    assert "chunked prefill" in " ".join(result.stderr.replace("│", " ").split())
