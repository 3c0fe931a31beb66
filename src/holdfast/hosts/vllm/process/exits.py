"""How a process ended, in words."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from holdfast.progress.oom import oom_kills, why_killed

EXIT_CODE_TIMEOUT_S = 1.0  # a process sentinel tells of an exit before the system knows the exit code


def explain_exit(exit_code: int | None, oom_kills_before: Mapping[str, int]) -> str:
    """Describe an exit; for SIGKILL, add whether the kernel killed the process because memory ran out.

    `oom_kills_before` are the kernel's counts when the process was known to be alive.
    """
    how = describe_exit(exit_code)
    return f"{how}, {why_killed(oom_kills_before, oom_kills())}" if exit_code == -signal.SIGKILL else how


def describe_exit(exit_code: int | None) -> str:
    """Describe an exit code as `multiprocessing` gives it: negative for a signal, None while the process is ending."""
    if exit_code is None:
        return "it is ending"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
