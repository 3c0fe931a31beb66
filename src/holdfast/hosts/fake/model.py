"""The pretend model: a token depends on every KV slot before the token, so a slot that was never written shows.

Owns the arithmetic and the KV memory of a rank. A slot that was never written holds garbage.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

VOCABULARY = 997


def _mix(state: int, value: int) -> int:
    return zlib.crc32(value.to_bytes(8, "little"), state)


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


class KVMemory:
    """The KV slots of a rank, addressed through block tables."""

    def __init__(self, rank: int, blocks: int, block_size: int) -> None:
        self._rank = rank
        self._block_size = block_size
        self._slots = [_mix(rank, slot) ^ 0xDEAD for slot in range(blocks * block_size)]

    def attend(self, blocks: Sequence[int], tokens: int) -> int:
        """Return the result of attention over the first `tokens` slots of a block table."""
        state = 0
        for position in range(tokens):
            state = _mix(state, self._slots[self._at(blocks, position)])
        return state

    def write(self, blocks: Sequence[int], start: int, tokens: Sequence[int]) -> int:
        """Write the KV of `tokens` from position `start` on; return the attention result of the last token."""
        state = self.attend(blocks, start)
        for position, token in enumerate(tokens, start):
            slot = _slot(state, token, self._rank)
            self._slots[self._at(blocks, position)] = slot
            state = _mix(state, slot)
        return state

    def _at(self, blocks: Sequence[int], position: int) -> int:
        return blocks[position // self._block_size] * self._block_size + position % self._block_size
