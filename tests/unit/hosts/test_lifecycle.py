"""A failed process ends in bounded time."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading
from holdfast.hosts.vllm.process.lifecycle import exit_within
exit_within({seconds})
{ends}
"""


def exit_code(seconds: float, ends: str) -> int:
    program = PROGRAM.format(seconds=seconds, ends=ends)
    return subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode


def test_a_process_that_never_ends_by_itself_is_ended() -> None:
    assert exit_code(0.05, "threading.Event().wait()") == 1


def test_a_process_that_ends_in_time_keeps_its_exit_code() -> None:
    assert exit_code(3600.0, "raise SystemExit(3)") == 3
