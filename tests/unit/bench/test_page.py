"""The page of figures shows every document, and what was missed with it."""

from __future__ import annotations

from typing import Any

import msgspec

from holdfast.bench.faulted_run import RunResult
from holdfast.bench.figures import faulted_run_of, figures_of
from holdfast.bench.harms import Harm
from holdfast.bench.page import figures_page
from holdfast.bench.restart import Restart
from holdfast.bench.scenarios import scenarios_of
from holdfast.bench.topologies import DP2
from holdfast.chaos.checker import compare_runs
from support.incidents import loss

MACHINE = {"measured_at": "2026-01-02T03:04:05", "processor": "a processor", "cores": 2, "load_average": 0.5}


def recovery(wait_s: float) -> dict[str, Any]:
    result = RunResult(compare_runs([], []), {"answer 1": wait_s}, 0.01, 0.0, tuple(loss(1.0, 21.0)), ())
    runs = [faulted_run_of(DP2, scenarios_of(DP2, Harm.KILL_ENGINE)[0], 200, result)]
    figures = figures_of(DP2, runs, [], Restart(stop_s=1, start_s=38, first_token_s=1))
    return {"benchmark": "recovery", "machine": MACHINE, "topologies": [msgspec.to_builtins(figures)]}


def test_a_row_says_what_a_fault_cost_and_what_was_missed() -> None:
    """With the figures of what was missed."""
    page = figures_page({"kill.json": recovery(0.4)})
    [row] = [line for line in page.splitlines() if line.startswith("| an engine core killed")]
    assert "| [dp2](kill.json) | none | 1 | 400 ms | 400 ms | 40.0 s | 100 | 0 |" in row
    assert "interruption, median 400 ms, to reach 300 ms" in page
    assert "| [kill.json](kill.json) | 2026-01-02 | a processor | 2 | 0.5 | 0 |" in page


def test_the_first_version_of_a_document_is_shown_too() -> None:
    """It knew one rank only."""
    first = {
        "benchmark": "recovery",
        "machine": MACHINE,
        "trials": [1, 2],
        "interruption_median_s": 0.016,
        "interruption_max_s": 0.07,
        "restart_total_s": 28.3,
        "restart_to_median_interruption": 1763.0,
        "lost_tokens": 0,
        "repeated_tokens": 0,
        "changed_tokens": 0,
    }
    assert "| exceptions | [one](r.json) | none | 2 | 16 ms | 70 ms | 28.3 s | 1,763 | 0 | – |" in figures_page(
        {"r.json": first}
    )


def test_a_chaos_run_has_a_row_of_its_own() -> None:
    """With what leaked."""
    run = {
        "benchmark": "chaos",
        "machine": MACHINE,
        "topology": "dp2",
        "standby": "preloaded",
        "duration_s": 300.0,
        "kills": [{"longest_gap_s": 1.5}],
        "answers": 90,
        "exact": 88,
        "severed": 2,
        "wrong": 0,
        "leaks": ["files"],
        "left_behind": [],
    }
    assert "| dp2, standby preloaded | 5.0 | 1 | 90 | 88 | 2 | 0 | files | 1.50 s | [c.json](c.json) |" in figures_page(
        {"c.json": run}
    )
