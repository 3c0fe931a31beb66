"""Steps of the model that fail on the host's CPU platform: routed experts, pipeline buffers, seeded chunked prefill.

Each function wraps a method of the host and changes only its input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

# ---- expert parallelism: the host's kernel knows no expert map and reads beyond its weights for a remote expert


def apply_to_local_experts(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the host's `CPUUnquantizedExperts.apply` with experts of the rank only."""
    bound = _signature(original).bind(*args, **kwargs)
    arguments = bound.arguments
    if arguments["expert_map"] is not None:
        arguments["topk_ids"], arguments["topk_weights"] = local_routing(
            arguments["topk_ids"], arguments["topk_weights"], arguments["expert_map"]
        )
    return original(*bound.args, **bound.kwargs)


_signature = functools.cache(inspect.signature)


def local_routing(topk_ids: Tensor, topk_weights: Tensor, expert_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return local ids and weights; a remote expert becomes the first local expert, with weight 0.

    Args:
        topk_ids: global expert ids, shape (tokens, k).
        topk_weights: weights of the experts, same shape.
        expert_map: local id of each expert, -1 for a remote expert.
    """
    local = expert_map[topk_ids.long()]
    remote = local < 0
    ids = local.masked_fill(remote, 0).to(topk_ids.dtype)
    return ids, topk_weights.masked_fill(remote, 0)


# ---- pipeline parallelism: the buffers of a later stage for the tensors of the stage before
#
# The host makes the buffers in the warm-up, which its CPU worker skips for an eager model with a KV cache of a given
# size; the first step then fails. Runner V1 only: V2 makes the buffers when the model is loaded.


def with_receive_buffers(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the host's `sync_and_gather_intermediate_tensors` with the buffers made."""
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )
    return original(runner, *args, **kwargs)


# ---- seeded requests with a prompt in chunks, runner V1
#
# The host samples after each chunk too, discards the token and sets the request's generator back by its offset, which
# a generator on the CPU does not have: the step raises. So the generator stays out of the step, and the discarded token
# is drawn without it.


def sparing_generators(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the host's `sample_tokens` without the generators of requests with a discarded token."""
    generators = runner.input_batch.generators
    spared = {row: generators[row] for row in generators if runner.discard_request_mask.np[row]}
    for row in spared:
        del generators[row]
    try:
        return original(runner, *args, **kwargs)
    finally:
        generators.update(spared)
