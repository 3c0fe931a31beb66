"""KV blocks with a prefix cache that has the host's trap: a block enters the cache when the block is allocated.

Owns reference counts, the free list (least recently used first) and the prefix cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

Prefix = tuple[int, ...]


class BlockPool:
    """The KV blocks of a pretend engine core."""

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._free = dict.fromkeys(range(blocks))  # ordered: the first was freed longest ago
        self._holders = [0] * blocks
        self._prefix_of: dict[int, Prefix] = {}
        self._block_of: dict[Prefix, int] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks with old contents, or None where fewer are free."""
        if count > len(self._free):
            return None
        taken = list(itertools.islice(self._free, count))
        self.evict(taken)
        self._hold(taken)
        return taken

    def hit(self, tokens: Sequence[int]) -> list[int]:
        """Return the longest run of cached blocks for `tokens`, with a reference on each block.

        At least one token stays to compute.
        """
        found: list[int] = []
        for end in range(self.block_size, len(tokens), self.block_size):
            block = self._block_of.get(tuple(tokens[:end]))
            if block is None:
                break
            found.append(block)
        self._hold(found)
        return found

    def cache(self, block: int, prefix: Prefix) -> None:
        """Enter a block into the prefix cache under `prefix`, written or not."""
        if self._block_of.setdefault(prefix, block) == block:
            known = self._prefix_of.setdefault(block, prefix)
            assert known == prefix, f"block {block} is in the prefix cache under another prefix"

    def evict(self, blocks: Iterable[int]) -> int:
        """Take blocks out of the prefix cache; return the number of blocks that were cached."""
        cached = [block for block in blocks if block in self._prefix_of]
        for block in cached:
            del self._block_of[self._prefix_of.pop(block)]
        return len(cached)

    def evict_all(self) -> int:
        """Empty the prefix cache; return the number of blocks that were cached."""
        return self.evict(list(self._prefix_of))

    def free(self, blocks: Sequence[int]) -> None:
        """Give blocks back in reverse order, so that a prefix stays longer than the tokens after the prefix."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            assert self._holders[block] >= 0, f"block {block} was given back too often"
            if self._holders[block] == 0:
                self._free[block] = None

    def _hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._holders[block] += 1
            self._free.pop(block, None)
