"""Reads the process table of Linux (`/proc`): who belongs to a session, and what it has used.

Only reads. On systems without `/proc` nothing is found, and callers say so or do without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class SessionUsage:
    """What the living processes of a session hold: processor seconds used, resident bytes, files and threads.

    `shared_segments` are what of `/dev/shm` they have mapped, deleted or not.
    """

    cpu_s: float
    resident_bytes: int
    files: int
    threads: int
    shared_segments: int = 0


def session_members(session_id: int) -> list[int]:
    """Ids of the living processes (zombies left out) of a session."""
    return [pid for pid, fields in _table() if int(fields[3]) == session_id and fields[0] != "Z"]


def session_usage(session_id: int) -> SessionUsage:
    """Sum over a session's living processes."""
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    rows = [(pid, fields) for pid, fields in _table() if int(fields[3]) == session_id and fields[0] != "Z"]
    return SessionUsage(
        cpu_s=sum(int(fields[11]) + int(fields[12]) for _, fields in rows) / ticks,
        resident_bytes=sum(int(fields[21]) for _, fields in rows) * page,
        files=sum(_open_files(pid) for pid, _ in rows),
        threads=sum(int(fields[17]) for _, fields in rows),
        shared_segments=len(session_segments(session_id)),
    )


def session_segments(session_id: int) -> set[str]:
    """What of `/dev/shm` a session's processes have mapped, as inode and path: a name may be used again."""
    return {segment for pid in session_members(session_id) for segment in _segments(pid)}


def still_shared(segment: str) -> bool:
    """Whether a segment, as `session_segments` names it, is still there."""
    inode, _, path = segment.partition(" ")
    try:
        return os.stat(path).st_ino == int(inode)
    except OSError:
        return False


def _segments(pid: int) -> set[str]:
    try:
        lines = (_PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:  # gone, or not ours
        return set()
    return {" ".join(line.split()[4:6]) for line in lines if " /dev/shm/" in line}


def _table() -> list[tuple[int, list[str]]]:
    """Every process with the fields of its `stat` after its name: state, parent, group, session, …"""
    rows = []
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            rows.append((int(path.parent.name), path.read_text(errors="replace").rpartition(")")[2].split()))
        except OSError:  # gone since the listing
            continue
    return [(pid, fields) for pid, fields in rows if len(fields) > 21]


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(_PROC / str(pid) / "fd"))
    except OSError:
        return 0
