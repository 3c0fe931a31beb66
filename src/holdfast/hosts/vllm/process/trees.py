"""Process trees: an engine core with its workers, hurried, killed, or awaited after a death."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence

import psutil

from holdfast.hosts.vllm.process.priority import hurry

logger = logging.getLogger("holdfast")

LINGER_S = 5.0  # workers follow a dead engine core by themselves, or are killed then


def end_processes(pids: Sequence[int], lost_at: float) -> None:
    """Wait until the workers of a dead engine core have ended, and kill the rest.

    Args:
        pids: the workers' process ids.
        lost_at: wall-clock seconds; younger processes are not workers of the dead engine core.
    """
    for process in _left_after(LINGER_S, pids, lost_at):
        logger.warning("process %d did not follow its engine core within %g s; killing it", process.pid, LINGER_S)
        kill_tree(process.pid)
    _left_after(LINGER_S, pids, lost_at)  # the system releases their memory


def _left_after(seconds: float, pids: Sequence[int], lost_at: float) -> list[psutil.Process]:
    """Wait at most `seconds` until all processes have ended, and return the processes that have not."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in map(_same_session, pids) if p is not None and p.create_time() < lost_at]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return left


def _same_session(pid: int) -> psutil.Process | None:
    """Return the live process with the given id, or None outside our session: the system reuses ids."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if os.getsid(pid) == os.getsid(0) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def hurry_tree(pid: int) -> None:
    """Give a process and all descendants ordinary priority."""
    for process in _tree(pid):
        hurry(process.pid)


def kill_tree(pid: int) -> None:
    """Kill a process and all descendants."""
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    """Return a process and all descendants; empty when the process is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
