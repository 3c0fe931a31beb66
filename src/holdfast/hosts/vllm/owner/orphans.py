"""Processes of the instance whose parent has died: they become children of the owner, and are reaped by it.

A worker outlives its engine core. As a child of the owner it stays in the owner's process tree, where a supervisor
and the host's own shutdown find it; and it leaves no zombie behind where the owner is the first process of a container.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing.process
import os
import signal
import time

from holdfast.hosts.vllm.process.members import forget_member, member_pids
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

LOOK_S = 5.0
END_TIMEOUT_S = 3.0
_PR_SET_CHILD_SUBREAPER = 36


class Orphans:
    """Reaps the orphans of an instance, on a thread. Processes that the owner started itself are never reaped here."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._thread = WatchThread("Orphans", self.reap, LOOK_S)

    @classmethod
    def adopted(cls, folder: str) -> Orphans:
        """Return the orphans of an instance, which become children of this process from now on."""
        made = cls(folder)
        made.start()
        return made

    def start(self) -> None:
        """Have orphans of this process's tree become its children from now on."""
        with contextlib.suppress(OSError, AttributeError):
            if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
                logger.warning("orphans become children of the system's first process: error %d", ctypes.get_errno())
        self._thread.start()

    def close(self) -> None:
        """End every orphan: a worker that waits for an engine core, at the end of the instance. Idempotent."""
        self._thread.close()
        deadline = time.monotonic() + END_TIMEOUT_S
        while (left := self._reaped()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        remove_dead_segments(self._folder)  # those of killed workers, and of the engine core that they waited for

    def reap(self) -> None:
        """Reap every orphan that has ended."""
        self._reaped()

    def _reaped(self) -> list[int]:
        """Reap every orphan that has ended, and return the living ones."""
        own = {process.pid for process in list(multiprocessing.process._children)}  # type: ignore[attr-defined]
        return [pid for pid in member_pids(self._folder) if pid not in own and self._lives(pid)]

    def _lives(self, pid: int) -> bool:
        """Reap a child that has ended; return whether the process is a living child of this one."""
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another process's child, or none
            return False
        if ended:
            forget_member(self._folder, pid)
        return not ended
