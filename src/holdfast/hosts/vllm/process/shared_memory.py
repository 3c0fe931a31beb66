"""Shared memory that a process made which is gone: it stays until somebody removes it, or the whole instance has ended.

Every process notes in the instance's folder what it makes, under its process id. Nobody comes to the memory of a dead
one any more: whoever still has it mapped keeps it for as long.
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
_GONE = (GONE, "Z")  # one that nobody has waited for yet has no memory either


def attach_segment_records() -> None:
    """In an engine core, and in a worker."""
    attach(RING_BUFFER, _make_and_note)


def _make_and_note(original: Callable[..., None], buffer: Any, *args: Any, **kwargs: Any) -> None:
    original(buffer, *args, **kwargs)
    if buffer.is_creator:
        _note([buffer.shared_memory.name])


@contextlib.contextmanager
def record_semaphores() -> Iterator[None]:
    """Of a lock that several processes share, which the host makes inside and keeps to itself."""
    before = _mapped_semaphores()
    yield
    _note(_mapped_semaphores() - before)


def recorded(lock: Any) -> Any:
    """A lock of our own that other processes are to share."""
    _note([f"sem.{lock._semlock.name.removeprefix('/')}"])
    return lock


def _mapped_semaphores() -> set[str]:
    """Names of those that this process has mapped; empty where the system does not say.

    Who makes one maps it under another name, which is gone at once: the file is the same.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        inodes = {int(line.split()[4]) for line in lines if f"{_SHARED / 'sem.'}" in line}
        return {path.name for path in _SHARED.glob("sem.*") if path.lstat().st_ino in inodes}
    return set()


def _note(names: Iterable[str]) -> None:
    config = inherited_settings()
    if config is not None and config.runtime_dir:
        with (Path(config.runtime_dir) / f"{_PREFIX}{getpid()}").open("a", encoding="utf-8") as notes:
            notes.writelines(f"{name}\n" for name in names)


def remove_dead_segments(runtime_dir: str) -> None:
    """Remove what processes of the instance have made that are gone. Any process of it, any thread."""
    for notes in Path(runtime_dir).glob(f"{_PREFIX}*"):
        pid = notes.name.removeprefix(_PREFIX)
        if pid.isdecimal() and look_at(int(pid)).state in _GONE:
            _forget(notes)


def _forget(notes: Path) -> None:
    mine = notes.with_name(f"of-{notes.name}")
    with contextlib.suppress(OSError):  # somebody else is at it
        notes.rename(mine)
        for name in mine.read_text(encoding="utf-8").split():
            _remove(name)
        mine.unlink()


def _remove(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it ended orderly
        segment = SharedMemory(name=name)
        segment.close()
        segment.unlink()
