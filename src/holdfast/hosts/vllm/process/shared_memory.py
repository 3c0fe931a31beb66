"""Shared memory and named semaphores of dead processes, removed while the instance serves on.

Every process records the segments and semaphores that it makes in the instance's folder, under its process id. No
process opens the segments of a dead process any more, and a process that has a segment mapped keeps the memory until it
unmaps.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from os import getpid
from pathlib import Path
from typing import Any

from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import RING_BUFFER
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.progress import look_at
from holdfast.progress.places import make_in, places
from holdfast.progress.processes import GONE

logger = logging.getLogger("holdfast")

_SHARED = Path("/dev/shm")
_PREFIX = "shm-"
_SEMAPHORE = "semaphore"  # the kind, for the tracker of resources
_SEMAPHORE_PREFIX = "sem."  # of the file
_NAME = re.compile(rb"(?!\.)[\w.+-]{1,255}")  # of a file in the folder of shared memory
_MAX_NOTES_BYTES = 1 << 20
_PART = 8  # of the room goes to a queue where the room is short
_LEAST_CHUNK_BYTES = 1 << 16
_MARGIN_BYTES = 1 << 20  # for what the host keeps beside the chunks of a queue
_GONE = (GONE, "Z")  # a zombie has no memory either


def attach_segment_records() -> None:
    """Attach the record of segments, in an engine core or a worker."""
    attach(RING_BUFFER, _make_and_record)


def _make_and_record(
    original: Callable[..., None],
    buffer: Any,
    n_reader: int,
    max_chunk_bytes: int,
    max_chunks: int,
    name: str | None = None,
) -> None:
    if name is None:
        max_chunk_bytes = _fitting(max_chunk_bytes, max_chunks)
    original(buffer, n_reader, max_chunk_bytes, max_chunks, name)
    if buffer.is_creator:
        _record([buffer.shared_memory.name])


def _fitting(chunk_bytes: int, chunks: int) -> int:
    """Return the size of a chunk for which there is room; the host itself would refuse to start.

    Containers often have 64 MiB of shared memory, and the host asks for 240 MiB. A message that is larger than a chunk
    goes through a socket. A queue gets a part of the room: further queues and those of a repair need room too.
    """
    try:
        free = shutil.disk_usage(_SHARED).free
    except OSError:
        return chunk_bytes
    if chunk_bytes * chunks < free - _MARGIN_BYTES:
        return chunk_bytes
    fitting = min(chunk_bytes, max(free // _PART // chunks, _LEAST_CHUNK_BYTES))
    text = "%s has room for %d MiB only: messages above %d KiB take a slower way; enlarge it with --shm-size"
    logger.warning(text, _SHARED, free >> 20, fitting >> 10)
    return fitting


def attach_semaphore_records() -> None:
    """Record every named semaphore that the current process makes from now on, also those of libraries. Idempotent.

    `multiprocessing` registers each semaphore with its tracker, in the process that makes the semaphore.
    """
    if not isinstance(resource_tracker.register, _Register):
        resource_tracker.register = _Register(resource_tracker.register)


class _Register:
    """Stands for `resource_tracker.register`: records, then registers."""

    def __init__(self, original: Callable[[Any, str], None]) -> None:
        self._original = original

    def __call__(self, name: Any, rtype: str) -> None:
        if rtype == _SEMAPHORE:
            _record([f"{_SEMAPHORE_PREFIX}{name.removeprefix('/')}"])
        self._original(name, rtype)


def _record(names: Iterable[str]) -> None:
    """Add names to the notes of the current process. Two full folders cost the note only."""
    config = inherited_settings()
    if config is not None and config.runtime_dir:
        text = "".join(f"{name}\n" for name in names)

        def note_in(place: Path) -> None:
            with (place / f"{_PREFIX}{getpid()}").open("a", encoding="utf-8") as notes:
                notes.write(text)

        with contextlib.suppress(OSError):
            make_in(config.runtime_dir, note_in)


def remove_dead_segments(runtime_dir: str) -> None:
    """Remove the segments and semaphores of all dead processes of the instance. Any process, any thread.

    What cannot be removed now keeps its note, for the next call.
    """
    recorded: list[Path] = []
    with contextlib.suppress(OSError):
        recorded = [notes for place in places(runtime_dir) for notes in place.glob(f"{_PREFIX}*")]
    for notes in recorded:
        pid = notes.name.removeprefix(_PREFIX)
        if pid.isdecimal() and look_at(int(pid)).state in _GONE:
            with contextlib.suppress(OSError):
                for name in _noted(notes):
                    _remove(name)
                notes.unlink(missing_ok=True)


def _noted(notes: Path) -> list[str]:
    """Return the names in a note: whole lines only, since a full disk may have cut the last line, and no paths."""
    with notes.open("rb") as file:
        lines = file.read(_MAX_NOTES_BYTES).split(b"\n")[:-1]
    return [line.decode("ascii") for line in lines if _NAME.fullmatch(line)]


def _remove(name: str) -> None:
    """Remove a segment or semaphore, without a file descriptor, which may be lacking; absent is no error."""
    (_SHARED / name).unlink(missing_ok=True)
    if name.startswith(_SEMAPHORE_PREFIX):
        _forget(f"/{name.removeprefix(_SEMAPHORE_PREFIX)}", _SEMAPHORE)
    else:
        _forget(f"/{name}", "shared_memory")


def _forget(name: str, rtype: str) -> None:
    """Make the tracker of resources forget a name, which the tracker would take for a leak at the end.

    Registered first: the tracker of the dead process may have been another, and complains about unknown names.
    """
    tracker = resource_tracker._resource_tracker
    with contextlib.suppress(OSError, ValueError):
        tracker.register(name, rtype)
        tracker.unregister(name, rtype)
