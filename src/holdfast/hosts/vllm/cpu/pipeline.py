"""Pipeline parallelism on the CPU: a later stage's buffers for what the stage before sends it.

The host makes them in its warm-up, which its CPU worker skips where the model runs eagerly and the KV cache has a
stated size; the first step then fails. Runner V1 only: V2 makes them when it loads the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def with_receive_buffers(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """The host's `sync_and_gather_intermediate_tensors`, with somewhere to put them."""
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )
    return original(runner, *args, **kwargs)
