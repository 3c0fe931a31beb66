"""Processes of a dead engine core: waited for, hurried, killed together with all that they started."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence

import psutil

from holdfast.hosts.vllm.process.priority import hurry

logger = logging.getLogger("holdfast")

LINGER_S = 5.0  # what a dead engine core started follows it by itself, or is killed then


def end_processes(pids: Sequence[int], lost_at: float) -> None:
    """Wait until the workers of a dead engine core have followed it; kill what does not. `lost_at` is wall-clock."""
    for process in _left_after(LINGER_S, pids, lost_at):
        logger.warning("process %d did not follow its engine core within %g s; killing it", process.pid, LINGER_S)
        kill_tree(process.pid)
    _left_after(LINGER_S, pids, lost_at)  # the system takes back what they had


def _left_after(seconds: float, pids: Sequence[int], lost_at: float) -> list[psutil.Process]:
    """Wait that long at most until none of them is there; those that still are."""
    deadline = time.monotonic() + seconds
    while (left := [p for p in map(_same_session, pids) if p is not None and p.create_time() < lost_at]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return left


def _same_session(pid: int) -> psutil.Process | None:
    """The process with this id, if it is alive and can be one of ours: ids are used again."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if os.getsid(pid) == os.getsid(0) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def hurry_tree(pid: int) -> None:
    """Have a process and all that it started take what they need."""
    for process in _tree(pid):
        hurry(process.pid)


def kill_tree(pid: int) -> None:
    """End a process and all that it started, at once."""
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _tree(pid: int) -> list[psutil.Process]:
    """A process and all that it started; nothing where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []
