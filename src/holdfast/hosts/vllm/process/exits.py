"""How a process ended, in words."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Mapping

from holdfast.progress.oom import oom_kills, why_killed

logger = logging.getLogger("holdfast")

EXIT_FAILED = 1  # the exit code after an exception

EXIT_CODE_TIMEOUT_S = 1.0  # a process sentinel tells of an exit before the system knows the exit code


def explain_exit(exit_code: int | None, oom_kills_before: Mapping[str, int]) -> str:
    """Describe an exit; for SIGKILL, add whether the kernel killed the process because memory ran out.

    `oom_kills_before` are the kernel's counts when the process was known to be alive.
    """
    how = describe_exit(exit_code)
    return f"{how}, {why_killed(oom_kills_before, oom_kills())}" if exit_code == -signal.SIGKILL else how


def describe_exit(exit_code: int | None) -> str:
    """Describe an exit code of `multiprocessing`: negative for a signal, None during the exit."""
    if exit_code is None:
        return "it is ending"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def exit_within(seconds: float) -> None:
    """End the process after a failure, unless the process ends by itself before. Does not wait.

    An engine core that has failed must end in bounded time: its requests resume elsewhere once the process is gone.
    """
    threading.Thread(target=_exit_after, args=(seconds,), name="holdfast-exit", daemon=True).start()


def _exit_after(seconds: float) -> None:
    threading.Event().wait(seconds)
    logger.error("process %d has failed and did not end within %g s; exiting now", os.getpid(), seconds)
    os._exit(EXIT_FAILED)
