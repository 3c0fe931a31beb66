"""Expert parallelism on the CPU: the host's kernel knows no expert map and reads beyond its weights for an expert
that lives on another rank.

Owns the translation of routed experts into local ones; the kernel stays the host's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor


def apply_to_local_experts(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The host's `CPUUnquantizedExperts.apply`, given only experts that this rank has."""
    bound = _signature(original).bind(*args, **kwargs)
    arguments = bound.arguments
    if arguments["expert_map"] is not None:
        arguments["topk_ids"], arguments["topk_weights"] = local_routing(
            arguments["topk_ids"], arguments["topk_weights"], arguments["expert_map"]
        )
    return original(*bound.args, **bound.kwargs)


_signature = functools.cache(inspect.signature)


def local_routing(topk_ids: Tensor, topk_weights: Tensor, expert_map: Tensor) -> tuple[Tensor, Tensor]:
    """Local ids and weights; an expert of another rank becomes the first one here, with weight 0.

    Args:
        expert_map: local id of each expert, -1 for one of another rank.
    """
    local = expert_map[topk_ids.long()]
    elsewhere = local < 0
    ids = local.masked_fill(elsewhere, 0).to(topk_ids.dtype)
    return ids, topk_weights.masked_fill(elsewhere, 0)
