"""Shared memory of dead processes, removed while the instance serves on.

Every process records the segments that it makes in the instance's folder, under its process id. No process opens the
segments of a dead process any more, and a process that has a segment mapped keeps the memory until it unmaps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.shared_memory import SharedMemory
from os import getpid
from pathlib import Path
from typing import Any

from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import RING_BUFFER
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.progress import look_at
from holdfast.progress.processes import GONE

_SHARED = Path("/dev/shm")
_PREFIX = "shm-"
_GONE = (GONE, "Z")  # a zombie has no memory either


def attach_segment_records() -> None:
    """Attach the record of segments, in an engine core or a worker."""
    attach(RING_BUFFER, _make_and_record)


def _make_and_record(original: Callable[..., None], buffer: Any, *args: Any, **kwargs: Any) -> None:
    original(buffer, *args, **kwargs)
    if buffer.is_creator:
        _record([buffer.shared_memory.name])


@contextlib.contextmanager
def record_semaphores() -> Iterator[None]:
    """Record the semaphores of shared locks that the host makes within the block."""
    before = _mapped_semaphores()
    yield
    _record(_mapped_semaphores() - before)


def recorded(lock: Any) -> Any:
    """Record the semaphore of a lock that several processes share, and return the lock."""
    _record([f"sem.{lock._semlock.name.removeprefix('/')}"])
    return lock


def _mapped_semaphores() -> set[str]:
    """Return the names of all mapped semaphores; empty when the system does not say.

    The maker maps a semaphore under a temporary name: hence a comparison by inode.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        inodes = {int(line.split()[4]) for line in lines if f"{_SHARED / 'sem.'}" in line}
        return {path.name for path in _SHARED.glob("sem.*") if path.lstat().st_ino in inodes}
    return set()


def _record(names: Iterable[str]) -> None:
    config = inherited_settings()
    if config is not None and config.runtime_dir:
        with (Path(config.runtime_dir) / f"{_PREFIX}{getpid()}").open("a", encoding="utf-8") as notes:
            notes.writelines(f"{name}\n" for name in names)


def remove_dead_segments(runtime_dir: str) -> None:
    """Remove the segments of all dead processes of the instance. Any process, any thread."""
    for notes in Path(runtime_dir).glob(f"{_PREFIX}*"):
        pid = notes.name.removeprefix(_PREFIX)
        if pid.isdecimal() and look_at(int(pid)).state in _GONE:
            _remove_recorded(notes)


def _remove_recorded(notes: Path) -> None:
    mine = notes.with_name(f"of-{notes.name}")
    with contextlib.suppress(OSError):  # another process removes them
        notes.rename(mine)
        for name in mine.read_text(encoding="utf-8").split():
            _remove(name)
        mine.unlink()


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed in an orderly end
        segment = SharedMemory(name=name)
        segment.close()
        segment.unlink()
