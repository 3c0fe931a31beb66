"""Where to rewind each request to after a failed step: pure arithmetic over tokens and blocks.

What an unfinished step was to write counts as never written. A request's KV is good up to
`computed - in_flight` tokens; blocks that cover later tokens are suspect, and so is everything that
another request holds behind a suspect block that it shares. Good KV, down to the last token of a
partly filled block, is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestBlocks:
    """A request with KV blocks.

    `computed` counts the tokens whose KV is written or about to be written, `in_flight` the tokens of steps whose
    output was never processed, `total` all tokens (prompt and output). `blocks` are block ids in order. `keepable` is
    False for a request that must start from its first token. The first `together` tokens are kept whole or not at all.
    """

    request_id: str
    total: int
    computed: int
    in_flight: int
    blocks: Sequence[int]
    keepable: bool = True
    together: int = 0


@dataclass(frozen=True)
class RewindPlan:
    """Plan of a rewind: good tokens per request (0: release all blocks), and blocks to evict from the prefix cache."""

    good_tokens: Mapping[str, int]
    suspect_blocks: frozenset[int]
    block_size: int

    def kept_blocks(self, request_id: str) -> int:
        """Return how many blocks a request keeps."""
        return -(-self.good_tokens[request_id] // self.block_size)


def plan_rewind(requests: Iterable[RequestBlocks], block_size: int) -> RewindPlan:
    """Return the plan for all requests of an engine core whose KV cache is a single group of full attention."""
    holders = list(requests)
    written = {r.request_id: _own_written_tokens(r) for r in holders}
    trusted = _trusted_tokens(holders, written, block_size)
    while cut := _cut_at_suspects(holders, written, trusted, block_size):  # ends: written tokens only shrink
        written |= cut
    good = {r.request_id: written[r.request_id] if r.keepable else 0 for r in holders}
    good = _one_writer_per_block(holders, good, block_size)
    good = {r.request_id: n if (n := good[r.request_id]) >= r.together else 0 for r in holders}
    return RewindPlan(good, frozenset(trusted), block_size)


def plan_restart(requests: Iterable[RequestBlocks], block_size: int) -> RewindPlan:
    """Return the plan after the loss of a rank's memory: no KV is good, and every block is suspect."""
    holders = list(requests)
    blocks = frozenset(block for r in holders for block in r.blocks)
    return RewindPlan({r.request_id: 0 for r in holders}, blocks, block_size)


def _own_written_tokens(r: RequestBlocks) -> int:
    # At least one token is computed anew: the last one, whose logits the next token needs.
    return max(0, min(r.computed - r.in_flight, r.total - 1))


def _trusted_tokens(holders: Sequence[RequestBlocks], written: Mapping[str, int], block_size: int) -> dict[int, int]:
    """Return, by suspect block, how many first tokens every holder has written."""
    trusted: dict[int, int] = {}
    for r in holders:
        first = written[r.request_id] // block_size
        for index, block in enumerate(r.blocks[first:], first):
            vouched = max(0, written[r.request_id] - index * block_size)
            trusted[block] = min(vouched, trusted.get(block, vouched))
    return trusted


def _cut_at_suspects(
    holders: Sequence[RequestBlocks], written: Mapping[str, int], trusted: dict[int, int], block_size: int
) -> dict[str, int]:
    """Return the requests that count tokens in a block that another holder has not written, with the block's start.

    Everything that such a request holds behind that block was computed from the block, and is not trusted either.
    """
    cut: dict[str, int] = {}
    for r in holders:
        counted = written[r.request_id]
        for index, block in enumerate(r.blocks[: -(-counted // block_size)]):
            if trusted.get(block, block_size) < min(block_size, counted - index * block_size):
                cut[r.request_id] = index * block_size
                trusted.update(dict.fromkeys(r.blocks[index + 1 :], 0))
                break
    return cut


def _one_writer_per_block(holders: Sequence[RequestBlocks], good: Mapping[str, int], block_size: int) -> dict[str, int]:
    """Drop a partly filled block that two requests would write: neither request keeps the block."""
    writes = {r.request_id: r.blocks[n // block_size] for r in holders if (n := good[r.request_id]) % block_size}
    writers = Counter(writes.values())
    contested = {request_id for request_id, block in writes.items() if writers[block] > 1}
    return {i: n // block_size * block_size if i in contested else n for i, n in good.items()}


def release_until_rest_fits(
    plan: RewindPlan, requests: Sequence[RequestBlocks], free_blocks: int, step_tokens: int, *, spare_blocks: int = 1
) -> RewindPlan:
    """Release whole requests, last first, until the blocks that admit every other request are free at once.

    Requests that hold blocks while they wait are not preempted by the host for one another: without this, a head of
    the queue could wait for ever for a block that no request frees.

    Args:
        requests: in the order in which the host will take them.
        free_blocks: blocks free once the plan is carried out.
        step_tokens: most tokens for which the host needs free blocks to admit a request: those of a step, or of the
            longest request where the host admits only a request whose whole sequence fits.
        spare_blocks: blocks for each request beside these.
    """
    good = dict(plan.good_tokens)
    keepers = Counter(b for r in requests for b in r.blocks[: plan.kept_blocks(r.request_id)])
    free = free_blocks
    for r in reversed(requests):
        if _needed_blocks(good, requests, plan.block_size, step_tokens, spare_blocks) <= free:
            break
        kept = r.blocks[: plan.kept_blocks(r.request_id)]
        keepers.subtract(kept)
        free += sum(keepers[block] == 0 for block in kept)
        good[r.request_id] = 0
    return RewindPlan(good, plan.suspect_blocks, plan.block_size)


def given_up(plan: RewindPlan) -> RewindPlan:
    """Return the plan by which no request keeps anything."""
    return RewindPlan(dict.fromkeys(plan.good_tokens, 0), plan.suspect_blocks, plan.block_size)


def given_up_blocks(plan: RewindPlan, requests: Sequence[RequestBlocks]) -> int:
    """Return how many blocks become free when the plan is carried out: blocks that no request keeps."""
    kept = {b for r in requests for b in r.blocks[: plan.kept_blocks(r.request_id)]}
    return len({b for r in requests for b in r.blocks} - kept)


def _needed_blocks(
    good: Mapping[str, int], requests: Sequence[RequestBlocks], block_size: int, step_tokens: int, spare_blocks: int
) -> int:
    needed = 0
    for r in requests:
        kept = good[r.request_id]
        if kept:
            reach = min(r.total, kept + step_tokens)
            needed += -(-reach // block_size) + spare_blocks - -(-kept // block_size)
    return needed
