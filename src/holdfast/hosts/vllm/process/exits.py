"""How a process ended, in words."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from holdfast.progress.oom import oom_kills, why_killed


def explain_exit(exit_code: int | None, oom_kills_before: Mapping[str, int]) -> str:
    """How a process ended, and whether one that was killed from outside was killed because memory ran out."""
    how = describe_exit(exit_code)
    return f"{how}, {why_killed(oom_kills_before, oom_kills())}" if exit_code == -signal.SIGKILL else how


def describe_exit(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "it is ending"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
