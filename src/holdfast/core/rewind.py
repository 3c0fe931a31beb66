"""Where to rewind each request to after a failed step: pure arithmetic over tokens and blocks.

What an unfinished step was to write counts as never written. A request's KV is good up to
`computed - in_flight` tokens; blocks that cover later tokens are suspect, and so is everything that
another request holds behind a suspect block that it shares. Good KV, down to the last token of a
partly filled block, is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HeldRequest:
    """One request and what it holds.

    `computed` counts the tokens whose KV is written or about to be, `in_flight` those of steps
    whose output was never processed, `total` all its tokens (prompt and output). `blocks` are its
    block ids in order. `keepable` is false for a request that must start from its first token.
    """

    request_id: str
    total: int
    computed: int
    in_flight: int
    blocks: Sequence[int]
    keepable: bool = True


@dataclass(frozen=True)
class RewindPlan:
    """`good_tokens` per request (0: release all its blocks); `suspect_blocks` leave the prefix cache."""

    good_tokens: Mapping[str, int]
    suspect_blocks: frozenset[int]
    block_size: int

    def kept_blocks(self, request_id: str) -> int:
        """How many of a request's blocks stay with it."""
        return -(-self.good_tokens[request_id] // self.block_size)


def plan_rewind(requests: Iterable[HeldRequest], block_size: int) -> RewindPlan:
    """Plan for all requests of one engine core whose KV cache is one group of full attention."""
    held = list(requests)
    good = {r.request_id: _own_good_tokens(r) for r in held}
    suspect: set[int] = set()
    changed = True
    while changed:  # ends: good tokens only shrink
        changed = False
        for r in held:
            suspect.update(r.blocks[good[r.request_id] // block_size :])
        for r in held:
            reachable = _good_behind_shared(r, good[r.request_id], suspect, block_size)
            if reachable < good[r.request_id]:
                good[r.request_id] = reachable
                changed = True
    return RewindPlan(good, frozenset(suspect), block_size)


def _own_good_tokens(r: HeldRequest) -> int:
    if not r.keepable:
        return 0
    # At least one token is computed anew: the last one, whose logits the next token needs.
    return max(0, min(r.computed - r.in_flight, r.total - 1))


def _good_behind_shared(r: HeldRequest, good: int, suspect: set[int], block_size: int) -> int:
    for index, block in enumerate(r.blocks[: good // block_size]):
        if block in suspect:
            return index * block_size
    return good


def release_until_rest_fits(
    plan: RewindPlan, requests: Sequence[HeldRequest], free_blocks: int, step_tokens: int
) -> RewindPlan:
    """Release whole requests, last first, until what the others need for a step is free.

    Requests that hold blocks while they wait are not preempted by the host for one another: without
    this, a head of the queue that needs a block nobody has could wait for ever.

    Args:
        free_blocks: blocks free once the plan is carried out.
        step_tokens: most tokens that one step may compute.
    """
    good = dict(plan.good_tokens)
    free = free_blocks
    for r in reversed(requests):
        if _needed_blocks(good, requests, plan.block_size, step_tokens) <= free:
            break
        free += -(-good[r.request_id] // plan.block_size)
        good[r.request_id] = 0
    return RewindPlan(good, plan.suspect_blocks, plan.block_size)


def _needed_blocks(
    good: Mapping[str, int], requests: Sequence[HeldRequest], block_size: int, step_tokens: int
) -> int:
    needed = 0
    for r in requests:
        kept = good[r.request_id]
        if kept:
            reach = min(r.total, kept + step_tokens)
            needed += -(-reach // block_size) + 1 - -(-kept // block_size)
    return needed
