"""Looks at real processes: what cannot be looked at is unknown, and unknown is not gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.progress.processes import GONE, ZOMBIE, look_at, start_ticks, ticks_now

# A name of sixteen bytes at most, which the system cuts between the bytes of a character.
CUT_NAME = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, "ÄÖÜßÄÖÜß".encode(), 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cut_name() -> Iterator[int]:
    program = [sys.executable, "-c", CUT_NAME]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"named\n"
        yield process.pid
        process.kill()


def test_a_name_that_is_cut_inside_a_character_hides_nothing(cut_name: int) -> None:
    with pytest.raises(UnicodeDecodeError):  # what ended the watch
        Path(f"/proc/{cut_name}/stat").read_text(encoding="utf-8")
    assert look_at(cut_name).state in {"S", "R"}
    assert start_ticks(cut_name) is not None


def test_an_ended_process_is_a_zombie_and_then_gone() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert look_at(process.pid).state == ZOMBIE
    process.wait()
    assert look_at(process.pid).state == GONE
    assert start_ticks(process.pid) is None


def test_a_process_is_older_than_now_and_younger_than_before_its_start() -> None:
    before = ticks_now()
    with subprocess.Popen(["sleep", "60"]) as process:
        started = start_ticks(process.pid)
        process.kill()
    assert started is not None
    assert before <= started <= ticks_now()
