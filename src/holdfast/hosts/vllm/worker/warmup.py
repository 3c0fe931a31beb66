"""Small kernels that the host compiles when a rank first needs them, compiled before anybody waits for it.

On the CPU the first of them takes two seconds, most of it for the compiler itself. Elsewhere the device is
not to be touched by a process that does not know its rank yet.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("holdfast")


def compile_small_kernels(vllm_config: Any) -> None:
    """Where that does not work they are compiled when they are needed, if they ever are, and nothing else."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        _compile_ranking(vllm_config)
    except Exception as error:
        logger.warning("small kernels were not compiled beforehand: %s", " ".join(str(error).split())[:200])


def _compile_ranking(vllm_config: Any) -> None:
    import torch
    from vllm.v1.sample.ops.logprobs import batched_count_greater_than

    for rows in (2, 3):  # one shape alone would be taken for the only one
        batched_count_greater_than(torch.zeros(rows, 8), torch.zeros(rows, 1))
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        _compile_vocabulary_mask()


def run_once_alone(worker: Any) -> None:
    """One pretended step with the weights read: whatever else is made at the first step is made now.

    Its collectives send nothing, and its result is looked at by nobody. Where it does not work, the first real
    step takes longer, and nothing else.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        worker.model_runner.profile_run()
    except Exception:
        logger.warning("a standby could not take its pretended step", exc_info=True)


def _compile_vocabulary_mask() -> None:
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import get_masked_input_and_mask

    for tokens in (8, 9):
        get_masked_input_and_mask(torch.zeros(tokens, dtype=torch.int64), 0, 256, 0, 512, 512)
