"""What the system leaves to a server: open files, threads, shared memory, room for temporary files; and what is short.

Measured with one rank: 48 open files and 19 threads in the first process, 67 and 18 in the engine core, 98 and 50 in
the worker. A repair needs as much again while the lost processes end.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil

from holdfast.progress.places import MEMORY
from holdfast.progress.processes import own_group
from holdfast.progress.surroundings import read

DESCRIPTORS = 1024  # of one process; in the first process each client takes one more
THREADS, THREADS_PER_RANK = 40, 140
SHARED_MIB_PER_RANK = 32
TEMPORARY_MIB, TEMPORARY_FILES = 64, 1000
ELSEWHERE = "make room, or set TMPDIR to another folder"
_MIB = 1 << 20


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Resources that are left; None where the system sets no limit or does not tell."""

    descriptors: int | None = None
    threads: int | None = None
    shared_bytes: int | None = None
    temporary_folder: str = ""
    temporary_bytes: int | None = None
    temporary_files: int | None = None


class Shortage(msgspec.Struct, frozen=True):
    """Something of which less is left than a server and the repair of one need."""

    about: str
    text: str
    hint: str


def look_for_room(temporary_folder: str, root: Path = Path("/")) -> Room:
    """Return what the system leaves to a server that is started now."""
    shared, temporary = _free(str(MEMORY)), _free(temporary_folder)
    return Room(
        descriptors=_limit(resource.RLIMIT_NOFILE),
        threads=min(_threads_left(root), default=None),
        shared_bytes=shared[0] if shared else None,
        temporary_folder=temporary_folder,
        temporary_bytes=temporary[0] if temporary else None,
        temporary_files=temporary[1] if temporary else None,
    )


def shortages(room: Room, ranks: int) -> Iterator[Shortage]:
    """Yield what is short for a server with so many ranks on this machine."""
    threads, shared = THREADS + THREADS_PER_RANK * ranks, SHARED_MIB_PER_RANK * ranks
    if _below(room.descriptors, DESCRIPTORS):
        text = f"a process may open {room.descriptors} files; a server and its clients need {DESCRIPTORS} or more"
        yield Shortage("open files", text, "raise the hard limit: ulimit -Hn, LimitNOFILE=, --ulimit nofile=")
    if _below(room.threads, threads):
        text = f"{room.threads} more threads are allowed; a server with {ranks} rank(s) and its repair need {threads}"
        yield Shortage("threads", text, "raise the limit: ulimit -u, TasksMax=, --pids-limit")
    if _below(room.shared_bytes, shared * _MIB):
        text = f"{MEMORY} has room for {_mib(room.shared_bytes)} MiB; {ranks} rank(s) and a repair need {shared} MiB"
        yield Shortage("shared memory", text, "enlarge it: --shm-size, or an emptyDir of medium Memory")
    if _below(room.temporary_bytes, TEMPORARY_MIB * _MIB):
        left = f"{_mib(room.temporary_bytes)} MiB; a start needs {TEMPORARY_MIB} MiB"
        yield Shortage("temporary files", f"{room.temporary_folder} has room for {left}", ELSEWHERE)
    if _below(room.temporary_files, TEMPORARY_FILES):
        left = f"{room.temporary_files} files; a start needs {TEMPORARY_FILES}"
        yield Shortage("temporary files", f"{room.temporary_folder} has room for {left}", ELSEWHERE)


def _below(left: int | None, needed: int) -> bool:
    return left is not None and left < needed


def _mib(count: int | None) -> int:
    return (count or 0) // _MIB


def _limit(kind: int) -> int | None:
    """Return the hard limit, to which a server raises the limit in force."""
    hard = resource.getrlimit(kind)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _free(folder: str) -> tuple[int, int | None] | None:
    """Return bytes and files that an ordinary user may still make; files are None where they have no limit."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None


def _threads_left(root: Path) -> Iterator[int]:
    """Yield how many more threads each limit allows: of the control groups, and of the user."""
    top = root / "sys/fs/cgroup"
    group = top / own_group(root)
    for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
        with contextlib.suppress(ValueError):
            yield int(read(folder / "pids.max")) - int(read(folder / "pids.current"))
    limit = _limit(resource.RLIMIT_NPROC)
    if limit is not None and os.geteuid() != 0:  # the system exempts root
        yield limit - _threads_of_the_user()


def _threads_of_the_user() -> int:
    found = psutil.process_iter(["uids", "num_threads"])
    return sum(p.info["num_threads"] or 0 for p in found if p.info["uids"] and p.info["uids"].real == os.getuid())
