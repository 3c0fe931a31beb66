"""Shared memory that a process made which is gone: it stays until somebody removes it, or the whole instance has ended.

Every process notes in the instance's folder what it makes, under its process id. Nobody comes to the memory of a dead
one any more: whoever still has it mapped keeps it for as long.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory
from os import getpid
from pathlib import Path
from typing import Any

from holdfast.hosts.vllm.register import attach
from holdfast.hosts.vllm.settings import inherited_settings
from holdfast.hosts.vllm.workers.touchpoints import RING_BUFFER
from holdfast.progress import look_at
from holdfast.progress.processes import GONE

_PREFIX = "shm-"
_GONE = (GONE, "Z")  # one that nobody has waited for yet has no memory either


def attach_notes_of_segments() -> None:
    """In an engine core, and in a worker."""
    attach(RING_BUFFER, _make_and_note)


def _make_and_note(original: Callable[..., None], buffer: Any, *args: Any, **kwargs: Any) -> None:
    original(buffer, *args, **kwargs)
    config = inherited_settings()
    if buffer.is_creator and config is not None and config.runtime_dir:
        with (Path(config.runtime_dir) / f"{_PREFIX}{getpid()}").open("a", encoding="utf-8") as notes:
            notes.write(f"{buffer.shared_memory.name}\n")


def forget_segments_of_the_dead(runtime_dir: str) -> None:
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
