"""Writes the progress of the own process: one store into shared memory at the begin of a call, one at the end.

On the step path: no lock, no system call (the clock is read without one), nothing that could wait.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.steps import BatchShape
from holdfast.progress.places import find, make_in, places
from holdfast.progress.record import HEADER, PHASE_NUMBERS, RECORD_BYTES, SLOT, Lane, header_at, slot_at

logger = logging.getLogger("holdfast")

_PREFIX = "progress-"
FENCE_PREFIX = "fence-"  # of the memory in which a rank says that its fence is closed

Call = Callable[..., Any]
About = Callable[..., tuple[int, int, int]]


class ProgressWriter:
    """Writer of a lane, for a single thread."""

    def __init__(self, memory: mmap.mmap | bytearray, lane: Lane = Lane.MAIN) -> None:
        self._memory = memory
        self._lane = lane
        self._header = header_at(lane)
        self._call = 0
        self._seen: set[tuple[int, int]] = set()
        self._running = (0, 0, 0, 0, 0, 0, False)

    def begin(self, phase: Phase, step: int, tokens: int = 0, requests: int = 0) -> None:
        self._call = call = self._call + 1
        number = PHASE_NUMBERS[phase]
        shape = (number, BatchShape(tokens, requests).bucket)
        is_first = shape not in self._seen
        if is_first:
            self._seen.add(shape)
        now_ns = time.monotonic_ns()
        self._running = (call, step, now_ns, tokens, requests, number, is_first)
        HEADER.pack_into(self._memory, self._header, call, step, now_ns, tokens, requests, number, is_first, call)

    def recorded(self, phase: Phase, call: Call, about: About) -> Call:
        """Wrap `call` in a record; `about` maps the arguments to step, tokens and requests."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.begin(phase, *about(*args))
            try:
                returned = call(*args, **kwargs)
            except BaseException:
                self.end(raised=True)
                raise
            self.end()
            return returned

        return run

    def end(self, *, raised: bool = False) -> None:
        call, step, began_ns, tokens, requests, number, is_first = self._running
        is_typical = not (is_first or raised)
        lasted_ns = time.monotonic_ns() - began_ns
        at = slot_at(self._lane, call)
        SLOT.pack_into(self._memory, at, call, step, lasted_ns, tokens, requests, number, is_typical, call)


def publish_progress(folder: str) -> mmap.mmap:
    """Return memory for the record of the own process, published in `folder` under the process id."""
    for place in places(folder):
        _forget_the_gone(place)
    return publish_memory(folder, _PREFIX, RECORD_BYTES, "progress of this process, but for whether it is stopped,")


def publish_memory(folder: str, prefix: str, size: int, what: str) -> mmap.mmap:
    """Return memory of the own process, published in `folder` under `prefix` and the process id.

    The memory has no file of its own: the entry in the folder points at a descriptor of the process. Therefore nothing
    is written to a disk, which could delay a store, and the memory disappears with the process.
    """
    name = f"{prefix}{os.getpid()}"
    descriptor = os.memfd_create(f"holdfast-{prefix.removesuffix('-')}", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    for place in places(folder):
        (place / name).unlink(missing_ok=True)  # process ids come back

    def publish_in(place: Path) -> None:
        (place / name).symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")

    try:
        make_in(folder, publish_in)
    except OSError as error:
        logger.warning("the %s cannot be seen by other processes: %s", what, error)
    return mmap.mmap(descriptor, size)


def _forget_the_gone(folder: Path) -> None:
    """Remove the links and stacks of processes that have ended."""
    for link in (*folder.glob(f"{_PREFIX}*"), *folder.glob(f"{FENCE_PREFIX}*")):
        if not _may_exist(link):  # the link points into a process that has ended
            link.unlink(missing_ok=True)
            (folder / link.name.replace(_PREFIX, "stacks-", 1)).unlink(missing_ok=True)


def _may_exist(link: Path) -> bool:
    """Return whether a link's process may live; a process that cannot be looked at may."""
    try:
        return link.exists()
    except OSError:
        return True


def published(folder: str) -> set[int]:
    """Return the processes with a published record that still exist."""
    links = (link for place in places(folder) for link in place.glob(f"{_PREFIX}*"))
    numbers = (link.name.removeprefix(_PREFIX) for link in links if _may_exist(link))
    return {int(number) for number in numbers if number.isdecimal()}


def record_path(folder: str, pid: int) -> Path:
    return find(folder, _name(pid))


def _name(pid: int) -> str:
    return f"{_PREFIX}{pid}"
