"""Guard of an instance: a small process that outlives the owner, and ends what a killed owner leaves behind.

The owner of the engine cores may be killed at any moment, by its supervisor or by the kernel. Its processes would stay,
with their memory: stopped ones, those in a collective, and those that load a model notice nothing. The guard waits for
the end of the owner, in a session of its own, and kills the members that are left.

Meanwhile the guard keeps the instance's files: cleaners of the temporary folder remove old files. systemd-tmpfiles
leaves a locked folder alone, others go by the times of the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from holdfast.hosts.vllm.process.members import end_remains, touch_files
from holdfast.progress.processes import GONE, descendants, look_at, start_ticks

logger = logging.getLogger("holdfast")

_DONE = b"done"
_CLOSE_TIMEOUT_S = 2.0
_SAY_TIMEOUT_S = 2
TOUCH_S = 3600.0  # cleaners count in days
LOOK_S = 2.0


class Guard:
    """Guard of the instance with the folder `folder`, seen from the owner. Without a process the owner serves on."""

    def __init__(self, folder: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(_locked(folder))
        command = [sys.executable, "-m", __name__, folder, str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            logger.warning("no guard: a killed server would leave its processes behind: %s", error)

    @property
    def pid(self) -> int | None:
        """The process id; None without a process."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End the guard: nothing is left to be ended. Idempotent."""
        self._lock.close()
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.write(_DONE)
            process.stdin.close()
        try:
            process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


# ---- the guard's own process


def main(folder: str, owner: int) -> None:
    """Wait until the owner closes the guard or ends; in the latter case end the instance."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    known: dict[int, int] = {}
    with _locked(folder):
        is_done = _await_done(owner, folder, known)
    if is_done:
        return
    killed = end_remains(folder, known)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SAY_TIMEOUT_S)  # a log that nobody reads keeps no process
    print(f"holdfast: the server (pid {owner}) was killed; ended {killed} processes of it", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold a shared lock on a folder; without the lock go on."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _await_done(owner: int, folder: str, known: dict[int, int]) -> bool:
    """Return True when the owner says that all is done, False when the owner has ended without a word.

    Meanwhile keeps the files of the folder young, and the owner's descendants in `known`: a process without a record in
    the folder, for instance on a full disk, is not found otherwise once the parents have ended.
    """
    waits: list[int] = [0]
    with contextlib.suppress(OSError, AttributeError):
        waits.append(os.pidfd_open(owner))
    touched = time.monotonic()
    while os.getppid() == owner and not select.select(waits, [], [], min(LOOK_S, TOUCH_S))[0]:
        with contextlib.suppress(Exception):  # the guard outlives what it looks at
            look(owner, known)
            if time.monotonic() - touched >= TOUCH_S:
                touched = time.monotonic()
                touch_files(folder)
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable) and os.read(0, len(_DONE)) == _DONE


def look(owner: int, known: dict[int, int]) -> None:
    """Bring the descendants of a process that live now into `known`, and forget processes that have ended."""
    for pid in [pid for pid in known if look_at(pid).state == GONE]:
        del known[pid]
    for pid in descendants(owner) - {os.getpid()}:
        if (started := start_ticks(pid)) is not None:
            known[pid] = started


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
