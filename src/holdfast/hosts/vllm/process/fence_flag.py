"""The flag of a rank: a byte in shared memory that tells an engine core at once that the fence of the rank is closed.

A peer of a failed rank may end its step with a result that is wrong. Its reply must not overtake the news of the
failure, as it could overtake a message. So the failed rank raises its flag before it takes part in a collective, and
the engine core looks at the flags of its ranks before it takes a reply. On the step path that is reading bytes.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping

from holdfast.progress import FENCE_PREFIX, publish_memory
from holdfast.progress.places import find

logger = logging.getLogger("holdfast")

_BYTES = 2
_RAISED, _IS_READ = 0, 1


class FenceFlag:
    """The flag of the own rank; `memory` is shared with the engine core."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._memory = memory

    @classmethod
    def published(cls, folder: str) -> FenceFlag:
        """Publish the flag of the present process in the folder of the instance."""
        return cls(publish_memory(folder, FENCE_PREFIX, _BYTES, "flag of this rank's fence"))

    @property
    def is_read(self) -> bool:
        """Whether an engine core has said that it looks at the flag."""
        return self._memory[_IS_READ] != 0

    def put(self, *, raised: bool) -> None:
        """Raise or lower the flag."""
        self._memory[_RAISED] = raised


class FenceFlags:
    """The flags of the ranks of an engine core."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._memories: dict[int, mmap.mmap | bytearray] = {}
        self._read: tuple[mmap.mmap | bytearray, ...] = ()

    def watch(self, pids: Mapping[int, int]) -> None:
        """Look at the flags of these processes from now on, by rank, and tell the processes.

        A rank whose flag cannot be seen is not told, and breaks collectives instead of finishing a step.
        """
        for rank, pid in pids.items():
            self._memories.pop(rank, None)
            try:
                with find(self._folder, f"{FENCE_PREFIX}{pid}").open("r+b") as file:
                    self._memories[rank] = mmap.mmap(file.fileno(), _BYTES)
            except FileNotFoundError:  # a rank without peers, or whose groups cannot be made again, has no flag
                continue
            except (OSError, ValueError) as error:
                logger.warning("the flag of rank %d cannot be seen, so its steps are not finished: %s", rank, error)
        self._read = tuple(self._memories.values())
        for memory in self._read:
            memory[_IS_READ] = 1

    @property
    def any_raised(self) -> bool:
        """Whether the fence of any rank is closed by a fault of its own."""
        return any(memory[_RAISED] for memory in self._read)
