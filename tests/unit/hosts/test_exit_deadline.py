"""An engine core that has failed does not stay because its end takes for ever."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading
from holdfast.hosts.vllm.engine.exit_deadline import leave_within
leave_within({seconds})
{ends}
"""


def exit_code(seconds: float, ends: str) -> int:
    program = PROGRAM.format(seconds=seconds, ends=ends)
    return subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode


def test_one_whose_end_never_comes_ends_all_the_same() -> None:
    assert exit_code(0.05, "threading.Event().wait()") == 1


def test_one_that_ends_in_time_ends_as_it_would() -> None:
    assert exit_code(3600.0, "raise SystemExit(3)") == 3
