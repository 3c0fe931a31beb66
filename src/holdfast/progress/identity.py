"""Identity of a process beyond its id."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from holdfast.progress.processes import GONE, ZOMBIE, look_at, start_ticks


class Identity(msgspec.Struct, frozen=True):
    """Marks that tell a process from every other process.

    The id counts in a namespace and since a start of the machine; the system reuses ids.
    """

    pid: int
    start_ticks: int
    pid_namespace: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity:
        """Return the identity of a living process of this namespace."""
        return cls(pid, start_ticks(pid) or 0, _pid_namespace(), _boot())

    @property
    def has_ended(self) -> bool:
        """Return whether the process has ended for certain; of another namespace nothing is certain."""
        if self.boot != _boot():
            return True
        if self.pid_namespace != _pid_namespace():
            return False
        started = start_ticks(self.pid)
        return look_at(self.pid).state in (GONE, ZOMBIE) or (started is not None and started != self.start_ticks)

    @property
    def is_alive(self) -> bool:
        """Return whether the process lives for certain."""
        is_here = self.boot == _boot() and self.pid_namespace == _pid_namespace()
        return is_here and start_ticks(self.pid) == self.start_ticks


def _pid_namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
