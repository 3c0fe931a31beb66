"""Schedules the measuring client so that its own lateness does not distort the measurement.

On a machine with fewer cores than busy processes a client may wait for a processor longer than the server is
interrupted: its measured waits are too long, or too short when it wakes to a backlog.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def precise_client() -> Iterator[bool]:
    """Schedule the process at once where the system permits (yields whether), and collect no garbage meanwhile.

    Processes started inside are scheduled as usual.
    """
    gc.collect()
    gc.disable()
    prompt = _schedule(_PROMPT, 1)
    try:
        yield prompt
    finally:
        if prompt:
            _schedule(_USUAL, 0)
        gc.enable()


_USUAL = getattr(os, "SCHED_OTHER", 0)
_PROMPT = getattr(os, "SCHED_RR", 2) | getattr(os, "SCHED_RESET_ON_FORK", 0)


def _schedule(policy: int, priority: int) -> bool:
    if not hasattr(os, "sched_setscheduler"):
        return False
    try:
        os.sched_setscheduler(0, policy, os.sched_param(priority))
    except OSError:  # needs a privilege that most users rightly lack
        return False
    return True
