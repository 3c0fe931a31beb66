"""The pretend model: a token depends on every KV slot before the token, so a slot that was never written shows.

Owns the arithmetic and the KV memory of a rank. A slot that was never written holds garbage.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

VOCABULARY = 997
SLOT_BYTES = 8


def _mix(state: int, value: int) -> int:
    return zlib.crc32(value.to_bytes(SLOT_BYTES, "little"), state)


def _slot(attended: int, token: int, rank: int) -> int:
    return _mix(attended, token * 64 + rank)


def sample(attended_by_rank: Iterable[int]) -> int:
    """Return the next token, from the attention result of every rank (an all-reduce)."""
    state = 0
    for attended in attended_by_rank:
        state = _mix(state, attended)
    return state % VOCABULARY


def fault_free_output(prompt: Sequence[int], max_tokens: int, ranks: int) -> list[int]:
    """Return the output tokens of an engine without blocks, batches or faults."""
    attended, tokens = [0] * ranks, list(prompt)
    for position in range(len(prompt) + max_tokens - 1):
        for rank in range(ranks):
            attended[rank] = _mix(attended[rank], _slot(attended[rank], tokens[position], rank))
        if position >= len(prompt) - 1:
            tokens.append(sample(attended))
    return tokens[len(prompt) :]


@lru_cache(maxsize=64)
def _garbage(rank: int, slots: int) -> bytes:
    return b"".join((_mix(rank, slot) ^ 0xDEAD).to_bytes(SLOT_BYTES, "little") for slot in range(slots))


class KVMemory:
    """The KV slots of a rank, addressed through block tables.

    Attention mixes slot by slot, as `_mix` does: the checksum of adjacent slots is the checksum of their bytes.
    """

    def __init__(self, rank: int, blocks: int, block_size: int) -> None:
        self._rank = rank
        self._block_size = block_size
        self._slots = bytearray(_garbage(rank, blocks * block_size))

    def attend(self, blocks: Sequence[int], tokens: int) -> int:
        """Return the result of attention over the first `tokens` slots of a block table."""
        full, rest = divmod(tokens, self._block_size)
        size = self._block_size * SLOT_BYTES
        kept = [self._slots[block * size : (block + 1) * size] for block in blocks[:full]]
        if rest:
            kept.append(self._slots[blocks[full] * size : blocks[full] * size + rest * SLOT_BYTES])
        return zlib.crc32(b"".join(kept))

    def write(self, blocks: Sequence[int], start: int, tokens: Sequence[int]) -> int:
        """Write the KV of `tokens` from position `start` on; return the attention result of the last token."""
        state = self.attend(blocks, start)
        for position, token in enumerate(tokens, start):
            slot = _slot(state, token, self._rank).to_bytes(SLOT_BYTES, "little")
            block, offset = divmod(position, self._block_size)
            at = (blocks[block] * self._block_size + offset) * SLOT_BYTES
            self._slots[at : at + SLOT_BYTES] = slot
            state = zlib.crc32(slot, state)
        return state
