"""The README's commands, as a new user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow]

HOLDFAST = Path(sys.executable).with_name("holdfast")
README = Path(__file__).parents[2] / "README.md"


def holdfast(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HOLDFAST), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.mark.timed
def test_the_demo_ends_well_within_three_minutes_and_says_what_the_readme_shows() -> None:
    shown = holdfast("demo", timeout_s=180)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    last = shown.stdout.strip().splitlines()[-1]
    assert last.startswith("HELD FAST: 8 of 8 answers")
    assert last in README.read_text()


def test_the_doctor_finds_a_host_that_fits() -> None:
    said = holdfast("doctor", timeout_s=120)
    assert said.returncode == 0, said.stdout
    assert "0.32" in said.stdout


@pytest.mark.parametrize(
    "command", ["serve", "status", "apply", "events", "inject", "doctor", "demo", "bench", "chaos"]
)
def test_every_command_explains_itself(command: str) -> None:
    said = holdfast(command, "--help", timeout_s=60)
    assert said.returncode == 0
    assert "usage" in said.stdout.lower()


def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    said = holdfast("status", "--url", "http://127.0.0.1:9", timeout_s=30)
    assert said.returncode == 2
    assert len(said.stderr.strip().splitlines()) == 1
