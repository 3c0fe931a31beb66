"""Reads the process table of Linux (`/proc`): members of a session, and the resources they use.

Only reads. On systems without `/proc` nothing is found, and callers report that or do without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class SessionUsage:
    """Resources of a session's living processes: processor seconds, resident bytes, files and threads.

    `shared_segments` counts mapped parts of `/dev/shm`, deleted or not. `title` is the command line of a single
    process, which changes when a standby becomes the worker of a rank.
    """

    cpu_s: float
    resident_bytes: int
    files: int
    threads: int
    shared_segments: int = 0
    title: str = ""


def session_members(session_id: int) -> list[int]:
    """Return the ids of a session's living processes, without zombies."""
    return [pid for pid, fields in _table() if int(fields[3]) == session_id and fields[0] != "Z"]


def session_usage(session_id: int) -> SessionUsage:
    """Return the sum over a session's living processes."""
    each = usage_by_process(session_id).values()
    return SessionUsage(
        cpu_s=sum(one.cpu_s for one in each),
        resident_bytes=sum(one.resident_bytes for one in each),
        files=sum(one.files for one in each),
        threads=sum(one.threads for one in each),
        shared_segments=len(session_segments(session_id)),
    )


def usage_by_process(session_id: int) -> dict[int, SessionUsage]:
    """Return the resources of each living process of a session, by process id."""
    rows = [(pid, fields) for pid, fields in _table() if int(fields[3]) == session_id and fields[0] != "Z"]
    return {pid: _usage_of(pid, fields) for pid, fields in rows}


def _usage_of(pid: int, fields: list[str]) -> SessionUsage:
    return SessionUsage(
        cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        files=_open_files(pid),
        threads=int(fields[17]),
        shared_segments=len(_segments(pid)),
        title=_title(pid),
    )


def session_segments(session_id: int) -> set[str]:
    """Return the mapped parts of `/dev/shm` of a session as inode and path, since names are reused."""
    return {segment for pid in session_members(session_id) for segment in _segments(pid)}


def still_shared(segment: str) -> bool:
    """Return whether a segment, as named by `session_segments`, still exists."""
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
    """List every process with the fields of `stat` after the name: state, parent, group, session, …"""
    rows = []
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            rows.append((int(path.parent.name), path.read_text(errors="replace").rpartition(")")[2].split()))
        except OSError:  # gone since the listing
            continue
    return [(pid, fields) for pid, fields in rows if len(fields) > 21]


def _title(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").rstrip("\0")
    except OSError:
        return ""


def _open_files(pid: int) -> int:
    try:
        return len(os.listdir(_PROC / str(pid) / "fd"))
    except OSError:
        return 0
