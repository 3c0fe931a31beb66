"""`holdfast chaos`: its table, its document, and an exit code that a script can trust."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from holdfast.bench.machine import describe_machine
from holdfast.bench.topologies import DP2
from holdfast.chaos.campaign import Campaign, CampaignSettings
from holdfast.chaos.processes import SessionUsage
from holdfast.chaos.tally import Kill, Tally
from holdfast.chaos.victims import ProcessKind, Victim
from holdfast.cli import chaos as command
from holdfast.cli.chaos_report import ChaosDocument, document_of
from holdfast.core.errors import WorldError

pytest.importorskip("openai")


def document(*, exact: int = 9, wrong: int = 0, left: tuple[str, ...] = (), files: int = 10) -> ChaosDocument:
    settings = CampaignSettings(seed=41, minutes=1)
    server: Any = SimpleNamespace(pid=1)
    tally = Tally([], answers=9, tokens=90, exact=exact, wrong=wrong)
    kill = Kill(Victim(ProcessKind.ENGINE_CORE, 5, "VLLM::EngineCore_DP1"), 100.0, healed_s=22.0, longest_gap_s=0.25)
    campaign = Campaign(server, settings, [kill], tally, duration_s=60.0)
    campaign.before, campaign.after = {1: SessionUsage(1.0, 2, 10, 4)}, {1: SessionUsage(1.0, 2, files, 4)}
    return document_of(DP2, settings, describe_machine(), campaign, left, 0)


def invoke(monkeypatch: pytest.MonkeyPatch, answer: ChaosDocument | Exception, *arguments: str) -> Any:
    def run(*_: object) -> ChaosDocument:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(command, "_run", run)
    app = typer.Typer()
    app.command()(command.chaos)
    return CliRunner().invoke(app, arguments)


def test_a_run_that_lost_nothing_is_exit_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a line per kill, and the seed that draws it again."""
    result = invoke(monkeypatch, document(), "--seed", "41")
    assert result.exit_code == 0
    assert "--seed 41" in result.stdout
    [row] = [line for line in result.stdout.splitlines() if "EngineCore_DP1" in line]
    assert "0.25 s" in row
    assert "22.0 s" in row
    assert "HELD FAST: 1 processes killed" in result.stdout


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (document(wrong=1), "1 wrong"),
        (document(left=("process 7",)), "left behind: process 7"),
        (document(files=100), "leak: process 1: files grew from 10 to 100"),
        (document(exact=0), "0 exact"),
    ],
    ids=["wrong", "left", "leak", "nothing"],
)
def test_anything_lost_or_leaked_is_exit_1(found: ChaosDocument, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And said; a run in which no answer was right proves nothing."""
    result = invoke(monkeypatch, found)
    assert result.exit_code == 1
    assert said in result.stdout
    assert "FAILED" in result.stdout


def test_the_document_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stdout alone."""
    told = json.loads(invoke(monkeypatch, document(), "--json").stdout)
    assert (told["topology"], told["seed"], told["lawful"]) == ("dp2", 41, True)


def test_a_server_that_does_not_start_is_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    result = invoke(monkeypatch, WorldError("the server ended with exit code 3"))
    assert result.exit_code == 2
    assert "exit code 3" in result.stderr


@pytest.mark.parametrize("arguments", [("--kinds", "cat"), ("--minutes", "0"), ("--topology", "tp3")])
def test_what_cannot_be_asked_is_exit_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started."""
    assert invoke(monkeypatch, AssertionError("was started"), *arguments).exit_code == 2
