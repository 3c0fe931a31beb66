"""The nightly script: what it runs next, when it stops, and what its rows cover."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from holdfast.chaos.simulation.sentinels import EFFECTS
from holdfast.core.states import TRANSITIONS

SCRIPT = Path(__file__).parents[2] / "scripts" / "nightly"
CODE = ("abc1234", "code-now")
ITEMS = ["a", "b", "c", "d"]


def load():
    loader = SourceFileLoader("nightly", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("nightly", loader))
    sys.modules["nightly"] = module  # its dataclasses look themselves up there
    loader.exec_module(module)
    return module


nightly = load()


def row(item, outcome="passed", code="code-now", commit="abc1234"):
    return nightly.Row(item, outcome, 1.0, commit, code, "2026-01-01T00:00:00Z")


def rows(*some):
    return {one.item: one for one in some}


class Clock:
    """Each item that is run takes a minute."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, items, deadline):
        for item in items:
            if self.now + 60 > deadline:
                return
            self.now += 60
            yield nightly.Outcome(item, "failed" if item == "bad" else "passed", 60.0)


def part(items, clock):
    return nightly.Part(lambda: list(items), clock.run)


def run(path, items, minutes, clock=None):
    clock = clock or Clock()
    return nightly.work("some", part(items, clock), path, CODE, minutes * 60, clock)


def test_items_without_a_row_come_first_then_failed_ones_then_those_of_older_code():
    known = rows(row("a", code="older"), row("b", "failed"), row("c"))
    assert nightly.pending(ITEMS, known, "code-now") == ["d", "b", "a"]


def test_an_item_that_passed_on_this_code_is_not_run_again():
    assert nightly.pending(["a"], rows(row("a")), "code-now") == []


def test_a_run_stops_at_the_end_of_its_budget_and_the_next_one_resumes(tmp_path):
    path = tmp_path / "nightly-some.json"
    assert run(path, ITEMS, minutes=2.5) == 2
    assert set(nightly.read_rows(path)) == {"a", "b"}
    assert run(path, ITEMS, minutes=2.5) == 2
    assert set(nightly.read_rows(path)) == set(ITEMS)
    assert run(path, ITEMS, minutes=2.5) == 0


def test_each_row_is_on_disk_before_the_next_item_is_begun(tmp_path):
    path = tmp_path / "nightly-some.json"

    def breaks_in_the_second(items, deadline):
        yield nightly.Outcome(items[0], "passed", 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nightly.work("some", nightly.Part(lambda: ITEMS, breaks_in_the_second), path, CODE, 60.0)
    assert set(nightly.read_rows(path)) == {"a"}


def test_a_row_names_the_commit_and_the_document_its_part(tmp_path):
    path = tmp_path / "nightly-some.json"
    run(path, ["a"], minutes=2)
    document = json.loads(path.read_text())
    assert (document["benchmark"], document["part"]) == ("nightly", "some")
    assert [(one["item"], one["outcome"], one["commit"]) for one in document["rows"]] == [("a", "passed", "abc1234")]


def test_a_part_is_whole_when_every_item_has_a_good_row_of_whatever_commit():
    found = nightly.coverage(["a", "b"], rows(row("a"), row("b", code="older", commit="old")), "code-now")
    assert found.whole
    assert (found.current, found.commits) == (1, {"abc1234": 1, "old": 1})


@pytest.mark.parametrize("known", [rows(row("a")), rows(row("a"), row("b", "failed"))])
def test_a_part_with_a_missing_or_failed_item_is_not_whole(known):
    assert not nightly.coverage(["a", "b"], known, "code-now").whole


def test_a_part_without_items_is_not_whole():
    assert not nightly.coverage([], {}, "code-now").whole


def test_rows_of_items_that_are_gone_count_for_nothing():
    found = nightly.coverage(["a"], rows(row("a"), row("gone", "failed")), "code-now")
    assert (found.whole, found.failed, found.commits) == (True, (), {"abc1234": 1})


def test_a_failed_item_passes_when_it_is_run_again(tmp_path):
    path = tmp_path / "nightly-some.json"
    nightly.write_rows(path, "some", rows(row("a", "failed")))
    assert run(path, ["a"], minutes=2) == 1
    assert nightly.coverage(["a"], nightly.read_rows(path), "code-now").whole


def test_a_command_that_would_outlast_the_budget_is_not_begun():
    begin = nightly.one_by_one(lambda item: [sys.executable, "-c", "pass"], needs_s=3600)
    assert list(begin(["a"], time.monotonic() + 60)) == []


def test_a_command_passes_or_fails_by_its_exit_code_and_leaves_the_end_of_its_output():
    begin = nightly.one_by_one(lambda item: [sys.executable, "-c", f"print('said'); exit({item})"], needs_s=0)
    passed, failed = begin(["0", "1"], time.monotonic() + 60)
    assert (passed.outcome, passed.detail) == ("passed", "")
    assert (failed.outcome, failed.detail) == ("failed", "said\n")


def test_a_command_that_outlasts_the_budget_is_ended_and_leaves_no_row(monkeypatch):
    monkeypatch.setattr(nightly, "END_WITHIN_S", 0.0)
    began = time.monotonic()
    begin = nightly.one_by_one(lambda item: [sys.executable, "-c", "import time; time.sleep(60)"], needs_s=0)
    assert list(begin(["a"], time.monotonic() + 0.1)) == []
    assert time.monotonic() - began < 30


def test_a_block_of_seeds_names_the_seeds_that_it_runs():
    first, second, *_ = nightly.simulation_items()
    assert nightly.simulation_environment(first) == {"HOLDFAST_SEEDS": "0:500"}
    assert nightly.simulation_environment(second) == {"HOLDFAST_SEEDS": "500:1000"}


TALLY = {"runs": 500, "faults": 1500, "transitions": {}, "failed_effects": {}}


def block_rows(tally):
    blocks = [replace(row(item), detail=json.dumps(tally)) for item in nightly.seed_blocks()]
    return {one.item: one for one in blocks}


def test_all_seeds_have_no_outcome_as_long_as_a_block_has_not_passed():
    known = block_rows(TALLY)
    del known[nightly.seed_blocks()[7]]
    assert nightly.judge_simulation(known) is None


def test_all_seeds_fail_when_a_row_or_a_failing_effect_is_seen_too_seldom_and_the_row_says_which():
    names = {f"{state} + {trigger}": 3 for state, trigger in TRANSITIONS}
    seen = {**TALLY, "transitions": names, "failed_effects": dict.fromkeys(EFFECTS, 3)}
    assert nightly.judge_simulation(block_rows(seen)).outcome == "passed"
    seldom = {**seen, "failed_effects": {**seen["failed_effects"], "kill_rank": 2}, "faults": 1499}
    judged = nightly.judge_simulation(block_rows(seldom))
    assert (judged.outcome, judged.detail) == ("failed", "kill_rank: 80 of 100; 59960 faults in 20000 schedules")


def test_what_processes_have_seen_is_added_up():
    one = {**TALLY, "transitions": {"a": 1, "b": 2}, "events": {"x": 1}}
    assert nightly.add_tallies([one, one])["transitions"] == {"a": 2, "b": 4}


def test_the_item_about_all_rows_is_judged_after_the_run(tmp_path):
    clock = Clock()
    judged = nightly.Part(
        lambda: ["a", "all"],
        lambda items, end: clock.run(["a"], end),
        lambda rows: nightly.Outcome("all", "passed", 0.0),
    )
    assert nightly.work("some", judged, tmp_path / "rows.json", CODE, 150, clock) == 2


def test_a_module_passes_when_each_of_its_mutants_is_noticed_or_explained_and_waits_while_some_have_no_verdict():
    rows = {
        "good": {"module": "good", "killed": 7, "explained": 1},
        "bad": {"module": "bad", "killed": 7, "survived": 1},
        "half": {"module": "half", "killed": 3, "not run": 4},
    }
    found = list(nightly.mutation_outcomes(["good", "bad", "half", "empty"], rows, 40.0))
    assert [(one.item, one.outcome, one.detail) for one in found] == [
        ("good", "passed", "explained 1, killed 7"),
        ("bad", "failed", "killed 7, survived 1"),
        ("empty", "passed", "no mutants"),
    ]


def test_the_row_of_all_mutants_fails_when_more_survivors_are_explained_than_the_bound_allows():
    rows = {nightly.ALL_MUTANTS: {"module": nightly.ALL_MUTANTS, "killed": 90, "explained": 6, "too many explained": 2}}
    (found,) = nightly.mutation_outcomes([nightly.ALL_MUTANTS], rows, 40.0)
    assert (found.outcome, found.detail) == ("failed", "explained 6, killed 90, too many explained 2")


def test_every_part_of_the_documentation_is_known():
    assert list(nightly.PARTS) == ["matrix", "simulation", "fuzz", "mutation", "features", "tools", "soak"]


def feature_row(item, result, outcome="passed"):
    cells = {"hang": {"greedy": {"result": result, "why": "2 tokens lost"}}}
    detail = json.dumps({"row": item, "step_ms": 5.0, "unrepeated": {}, "cells": cells})
    return replace(row(item, outcome), detail=detail)


def test_the_matrix_of_features_is_judged_once_every_row_is_there():
    items = [item for item in nightly.feature_rows() if item != nightly.ALL_FEATURES]
    good = rows(*(feature_row(item, "exact") for item in items))
    assert nightly.judge_features(good).outcome == "passed"
    assert nightly.judge_features(rows(*list(good.values())[1:])) is None
    bad = {**good, items[1]: feature_row(items[1], "broken", "failed")}
    judged = nightly.judge_features(bad)
    assert (judged.outcome, judged.detail) == ("failed", f"{items[1]}, hang, greedy: broken: 2 tokens lost")


def test_rows_of_features_are_outcomes_as_soon_as_each_has_ended(tmp_path, monkeypatch):
    line = json.dumps({"item": "plain", "outcome": "passed", "seconds": 1.0, "detail": "{}"})
    said = f"import sys; open(sys.argv[1], 'a').write({line!r} + chr(10))"
    command = [sys.executable, "-c", said, str(tmp_path / "lines")]
    found = list(nightly.outcomes_of_lines(command, tmp_path / "lines", time.monotonic() + 60))
    assert found == [nightly.Outcome("plain", "passed", 1.0, "{}")]
