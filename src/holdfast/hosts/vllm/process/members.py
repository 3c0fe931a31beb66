"""Record of the processes of an instance, in the instance's folder, and the end of an instance whose owner is gone.

Every process of the instance writes a file under its process id when it joins, with the time of its start. A process
that could not write the file is found by its environment, which names the folder until the host sets the process's
title over it, and among the processes that the guard has seen.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import psutil

from holdfast.hosts.vllm.process import log_drain
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.progress.identity import Identity
from holdfast.progress.places import MEMORY, PREFIX, is_private_folder, make_in, places, ready_reserve
from holdfast.progress.processes import GONE, ZOMBIE, look_at, start_ticks
from holdfast.progress.records import read_record

KILL_WAIT_S = 3.0
_MEMBER = "member-"
_OWNER = "owner"
_SOCKETS = "sockets"
_KEPT = "kept-"
_IPC = "ipc://"
# They end by themselves once all processes that they serve are gone, so have to outlive these.
_OUTLIVING = (b"resource_tracker", log_drain.__file__.encode())


def join_members(folder: str) -> None:
    """Record the current process as a member. Two full folders cost the record only."""
    with contextlib.suppress(OSError):
        make_in(folder, lambda place: _write(place / f"{_MEMBER}{os.getpid()}"))


def member_pids(folder: str) -> list[int]:
    """Return the process ids of the recorded members, also of ended ones."""
    names = [path.name.removeprefix(_MEMBER) for place in places(folder) for path in place.glob(f"{_MEMBER}*")]
    return [int(name) for name in names if name.isdecimal()]


def forget_member(folder: str, pid: int) -> None:
    """Remove the record of a member that has ended."""
    for place in places(folder):
        with contextlib.suppress(OSError):
            (place / f"{_MEMBER}{pid}").unlink(missing_ok=True)


def record_owner(folder: str) -> None:
    """Record the current process as the owner of the instance, in the instance's folder and in the reserve."""
    for place in (Path(folder), ready_reserve(folder)):
        with contextlib.suppress(OSError):
            if place is not None:
                _write(place / _OWNER)


def owner_of(folder: str) -> Identity | None:
    """Return the identity of the process that owns the instance with the given folder; None when it is unknown."""
    found = (_read(place / _OWNER) for place in places(folder))
    return next((owner for owner in found if owner is not None), None)


def remove_folder(folder: str) -> None:
    """Remove the folder of an instance, and the reserve."""
    for place in places(folder):
        shutil.rmtree(place, ignore_errors=True)


def record_sockets(folder: str, addresses: Iterable[str]) -> None:
    """Record the sockets that lie outside the folder, for the end of an instance without an owner."""
    paths = [address.removeprefix(_IPC) for address in addresses if address.startswith(_IPC)]
    with contextlib.suppress(OSError):
        (Path(folder) / _SOCKETS).write_bytes(msgspec.json.encode(paths))


def touch_files(folder: str) -> None:
    """Give every file of an instance, and the recorded sockets, the present time: cleaners remove old files."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _touch(os.path.join(root, name))
    for path in (folder, *_recorded_sockets(folder)):
        _touch(path)


def keep_with(folder: str, file: Path) -> None:
    """Keep a file outside of the folder as young as the folder's files, by a second name of the same file.

    Without effect on another file system: `/run` is not cleaned by age.
    """
    with contextlib.suppress(OSError):
        os.link(file, Path(folder) / f"{_KEPT}{os.getpid()}")


def _touch(path: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.utime(path, follow_symlinks=False)


def _recorded_sockets(folder: str) -> list[str]:
    return read_record(Path(folder) / _SOCKETS, list[str]) or []


def _write(path: Path) -> None:
    path.write_bytes(msgspec.json.encode(Identity.of(os.getpid())))


def _read(path: Path) -> Identity | None:
    return read_record(path, Identity)


# ---- the end of an instance whose owner is gone


def end_remains(folder: str, known: Mapping[int, int] = MappingProxyType({})) -> int:
    """Kill every process of an instance, remove shared memory and folder, and return how many were killed.

    `known`: processes that belong to the instance, with the clock ticks of their starts.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_WAIT_S
    while (left := set(_living(folder, known))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed |= left
        time.sleep(0.02)
    remove_dead_segments(folder)
    for path in _recorded_sockets(folder):
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
    remove_folder(folder)
    return len(killed)


def _living(folder: str, known: Mapping[int, int]) -> Iterator[int]:
    """Yield the living processes of an instance and descendants, without this process and those that outlive them."""
    records = (path for place in places(folder) for path in place.glob(f"{_MEMBER}*"))
    roots = {i.pid for i in map(_read, records) if i is not None and not i.has_ended}
    roots |= {pid for pid, started in known.items() if start_ticks(pid) == started}
    for pid in roots | set(_of_environment(folder)):
        for each in (pid, *_descendants(pid)):
            if each != os.getpid() and look_at(each).state not in (GONE, ZOMBIE) and not _outlives(each):
                yield each


def _of_environment(folder: str) -> Iterator[int]:
    """Yield the processes whose environment names the folder; those of other users cannot be read."""
    name = folder.encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if name in path.read_bytes():
                yield int(path.parent.name)


def _descendants(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error, OSError):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _outlives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return any(name in command for name in _OUTLIVING)
    return False


def end_dead_instances() -> list[str]:
    """End what dead instances of the current user have left, and return their folders."""
    ended = []
    for folder in (f for place in (Path(tempfile.gettempdir()), MEMORY) for f in place.glob(f"{PREFIX}*")):
        owner = _read(folder / _OWNER) if is_private_folder(folder) else None
        if owner is not None and owner.has_ended:
            end_remains(str(folder))
            ended.append(str(folder))
    return ended
