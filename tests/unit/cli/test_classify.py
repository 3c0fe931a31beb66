"""`holdfast classify`: what a fault would be classified as, and why."""

import json

import pytest
from typer.testing import CliRunner

from holdfast.cli import main as cli


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["classify", *arguments])


@pytest.mark.parametrize(
    ("arguments", "fault_class"),
    [
        (["CUDA error: an illegal memory access was encountered"], "device"),
        (["ValueError: no such block"], "transient"),
        (["torch.OutOfMemoryError: CUDA out of memory"], "transient"),
        (["my.module.FancyError: no idea"], "unknown"),
        (["--type", "PeerSilent"], "unresponsive"),
        (["--exit-code", "1"], "worker-lost"),
        (["--exit-code", "-9"], "worker-lost"),
        (["--signal", "sigsegv"], "worker-lost"),
        (["--signal", "KILL"], "worker-lost"),
    ],
)
def test_a_fault_gets_its_class_the_reason_and_the_first_repair(arguments, fault_class):
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == fault_class
    assert "because " in result.stdout
    assert "first: re" in result.stdout


def test_an_exit_code_as_a_shell_says_it_is_a_signal():
    assert "native code gave up" in invoke("--exit-code", "134").stdout
    assert invoke("--exit-code", "139").stdout == invoke("--signal", "SIGSEGV").stdout


def test_own_rows_are_tried_first_and_marked(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"class": "device", "message": "my driver"}]))
    told = json.loads(invoke("--fault-classes", str(rows), "my driver is gone", "--json").stdout)
    assert (told["fault_class"], told["own"]) == ("device", True)


def test_without_a_fault_the_whole_table_is_shown_own_rows_first(tmp_path):
    shown = invoke().stdout
    assert "ended by SIGKILL" in shown
    assert "XID 79" in shown
    own = '[{"class": "device", "exit_code": 43}]'
    told = json.loads(invoke("--fault-classes", own, "--json").stdout)
    assert told[0] == {"exit_code": 43, "class": "device", "reason": "by a row of your own", "own": True}
    assert not any(row["own"] for row in told[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--signal", "SIGFOO"], "unknown signal"),
        (["--fault-classes", "[3]"], "row 1 (3): not an object"),
        (["--fault-classes", "/there/is/no/such/file"], "cannot be read"),
        (["--fault-classes", "[{"], "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_one_line_on_stderr(arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
