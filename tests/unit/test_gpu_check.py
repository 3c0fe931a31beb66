"""`make gpu-check`: what did not run was not seen; a machine without a GPU says so, by an exit code of its own too."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu-check"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("gpu_check", str(SCRIPT))
    spec = spec_from_loader("gpu_check", loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # its dataclasses look themselves up
    loader.exec_module(module)
    return module


def items(script: ModuleType, *levels: int) -> tuple:
    return tuple(script.Item(f"item {number}", level, 60.0, lambda: "") for number, level in enumerate(levels))


def test_a_machine_without_a_gpu_has_seen_nothing_and_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "seen.json"
    monkeypatch.setattr(script, "gpus", lambda: (0, "torch finds no GPU that it can use"))
    monkeypatch.setattr(sys, "argv", ["gpu-check", "--json", str(file)])
    assert script.main() == script.NO_GPU == 77
    assert "NOTHING WAS SEEN" in capsys.readouterr().out
    outcomes = json.loads(file.read_text())
    assert len(outcomes) == len(script.ITEMS)
    assert not any(outcome["seen"] for outcome in outcomes)


def test_what_did_not_run_was_not_seen(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "run_one", lambda item, bound_s: script.Seen(item.name, item.level, True, "", 1.0))
    found = list(script.check(items(script, 1, 2, 3), level=3, count=1))
    assert [(seen.seen, seen.said) for seen in found][2] == (False, "this machine has one GPU")
    assert script.exit_code(found, 3, 1) == script.ALL_SEEN
    assert script.exit_code(found, 3, 2) == script.NOT_ALL_SEEN
    found = list(script.check(items(script, 1, 2), level=1, count=1))
    assert [seen.said for seen in found] == ["", "not asked for"]
    found = list(script.check(items(script, 1), level=1, count=1, budget_s=0.0))
    assert [(seen.seen, seen.said) for seen in found] == [(False, "no time was left")]
    assert script.exit_code(found, 1, 1) == script.NOT_ALL_SEEN


@pytest.mark.parametrize(
    ("program", "bound_s", "seen", "said"),
    [
        ("print('other'); print('a figure')", 30.0, True, "a figure"),
        ("raise AssertionError('the reason')", 30.0, False, "AssertionError: the reason"),
        ("import time; time.sleep(60)", 0.5, False, "not over after 0 s"),
    ],
)
def test_an_item_is_seen_if_its_process_ends_well_within_the_bound(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program: str,
    bound_s: float,
    seen: bool,
    said: str,
) -> None:
    file = tmp_path / "program"
    file.write_text(program)
    monkeypatch.setattr(script, "__file__", str(file))
    [item] = items(script, 1)
    found = script.run_one(item, bound_s)
    assert (found.seen, found.said) == (seen, said)


def test_the_whole_check_fits_into_ten_minutes(script: ModuleType) -> None:
    assert script.BUDGET_S < 600
    assert {item.level for item in script.ITEMS} == set(script.LEVELS)
    assert len({item.name for item in script.ITEMS}) == len(script.ITEMS)
