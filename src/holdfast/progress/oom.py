"""Kills by the kernel for lack of memory, from the kernel's counters. Linux only."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

CONTAINER, MACHINE = "in this container", "on this machine"


def oom_kills(root: Path = Path("/")) -> dict[str, int]:
    """Return the number of processes killed so far, by place of the counter; empty without counters."""
    counted: dict[str, int] = {}
    for where, files in ((CONTAINER, _of_cgroup(root)), (MACHINE, (root / "proc/vmstat",))):
        for file in files:
            if (count := _count_in(file)) is not None:
                counted[where] = count
                break
    return counted


def why_killed(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Interpret two counts around the death of a process by SIGKILL."""
    if not after:
        return "perhaps by the kernel because memory ran out: the kernel's count of such kills is not readable"
    for where, count in after.items():
        if (kills := count - before.get(where, count)) > 0:
            return f"most likely by the kernel: memory ran out {where}, {kills} processes killed meanwhile"
    return "not because memory ran out: the kernel counted no such kill"


def _of_cgroup(root: Path) -> tuple[Path, ...]:
    """Return the candidate files of the own group's counter: version 2, then 1; by path, then at the top."""
    path = own_group(root)
    v2, v1 = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    return (
        v2 / path / "memory.events",
        v2 / "memory.events",
        v1 / path / "memory.oom_control",
        v1 / "memory.oom_control",
    )


def own_group(root: Path) -> str:
    """Return the path of the process's control group, without a leading slash; empty without a group."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                return path.lstrip("/")
    return ""


def _count_in(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None
