"""Guard of an instance: a small process that outlives the owner, and ends what a killed owner leaves behind.

The owner of the engine cores may be killed at any moment, by its supervisor or by the kernel. Its processes would stay,
with their memory: stopped ones, those in a collective, and those that load a model notice nothing. The guard waits for
the end of the owner, in a session of its own, and kills the members that are left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys

from holdfast.hosts.vllm.process.members import end_remains

logger = logging.getLogger("holdfast")

_DONE = b"done"
_CLOSE_TIMEOUT_S = 2.0
_SAY_TIMEOUT_S = 2


class Guard:
    """Guard of the instance with the folder `folder`, seen from the owner. Without a process the owner serves on."""

    def __init__(self, folder: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
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
    if _await_done(owner):
        return
    killed = end_remains(folder)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SAY_TIMEOUT_S)  # a log that nobody reads keeps no process
    print(f"holdfast: the server (pid {owner}) was killed; ended {killed} processes of it", file=sys.stderr, flush=True)


def _await_done(owner: int) -> bool:
    """Return True when the owner says that all is done, False when the owner has ended without a word."""
    waits: list[int] = [0]
    with contextlib.suppress(OSError, AttributeError):
        waits.append(os.pidfd_open(owner))
    if os.getppid() != owner:
        return False
    select.select(waits, [], [])
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable) and os.read(0, len(_DONE)) == _DONE


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
