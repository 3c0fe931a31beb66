"""State that every rank holds for itself and that must be equal on all ranks of an engine core.

Every rank samples for itself and feeds its own token into the next forward pass that the ranks compute together. Ranks
that draw different numbers feed different tokens: every later answer is silently wrong. After a fault the ranks may
differ: a rank was stopped before it sampled, or is a new process that starts from the seed of the model.
"""

from __future__ import annotations

import hashlib
from typing import Any

from vllm.utils.torch_utils import set_random_seed

SEED_BITS = 32  # numpy takes no longer seed


def make_equal(runner: Any, seed: int) -> None:
    """Give a rank that holds no running request the same state as every other rank with the same `seed`."""
    set_random_seed(seed)
    if hasattr(runner, "req_states"):
        # Batch-sharded sampling divides the requests among the ranks by slot; slots are taken from the end.
        runner.req_states.free_indices = list(range(runner.req_states.max_num_reqs))
    if (experts := runner.eplb_state) is not None:
        experts.expert_rearrangement_step = 0  # ranks with different counts wait for each other for ever


def expert_placement(runner: Any) -> int:
    """Return a digest of the places of the experts, below 2^62; 0 where the host does not move experts.

    A new process has the experts in the places of the start, while the others may have moved them since.
    """
    if runner.eplb_state is None:
        return 0
    digest = hashlib.sha256()
    for name, state in sorted(runner.eplb_state.model_states.items()):
        digest.update(repr((name, state.physical_to_logical_map.tolist())).encode())
    return int.from_bytes(digest.digest()[:8], "big") >> 2
