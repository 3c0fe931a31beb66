"""What a standby does before a rank needs the process: compile, take a trial step, wait to be assigned a rank.

A standby waits in one of two places: before a rank is known, with everything imported; or as the worker of a rank, with
the weights loaded. The assignment is a typed message over the pipe that the process was started with. When the pipe
closes, the engine core has ended and the standby exits.
"""

from __future__ import annotations

import logging
import os
import time
from multiprocessing.connection import Connection
from typing import Any

from holdfast.core.faults.redaction import account_of
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import WORKER_INIT
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import freeze_objects
from holdfast.hosts.vllm.protocol import TakeOver, decode_take_over, to_handle
from holdfast.hosts.vllm.worker.memory_shortage import is_memory_shortage

logger = logging.getLogger("holdfast")

READY = b"ready"
DEVICE_FULL = 79  # exit code of a standby whose weights do not fit on the device beside the worker of its rank

# Pipe of the assignment that the process waits for once the weights are loaded; None for a worker with a rank.
_pending: Connection | None = None
_has_rank = False


def wait_after_loading(orders: Connection) -> None:
    """Have `assigned_queue` wait for the assignment that arrives over `orders`.

    Where the weights do not fit on the device, the process ends with `DEVICE_FULL`.
    """
    global _pending
    _pending = orders
    attach(WORKER_INIT, _end_when_full)


def _end_when_full(original: Any, proc: Any, *args: Any, **kwargs: Any) -> None:
    try:
        original(proc, *args, **kwargs)
    except Exception as error:
        if _has_rank or not is_memory_shortage(error):
            raise
        logger.warning("the weights of a standby do not fit on the device: %s", account_of(error).message)
        raise SystemExit(DEVICE_FULL) from None


def assigned_queue(given: Any, worker: Any) -> Any:
    """Return the handle of the queue to read calls from; a preloaded standby waits here for the assignment.

    Args:
        given: the handle that the worker was started with; returned where no assignment is pending.
        worker: the host's worker, with the weights loaded.
    """
    global _has_rank
    if _pending is None:
        return given
    import setproctitle  # the host's

    _take_trial_step(worker)
    freeze_objects()  # the model too: the first real step would wait for a collection that walks through the model
    title = setproctitle.getproctitle()
    setproctitle.setproctitle(title.replace("Worker", "Standby"))  # a search for a rank's process finds one process
    order = await_assignment(_pending)
    _has_rank = True
    setproctitle.setproctitle(title)
    return to_handle(order.queue)


def await_assignment(orders: Connection) -> TakeOver:
    """Report that the process is ready, and wait for the assignment. Raises `SystemExit` when the engine core ends."""
    try:
        logger.info("standby %d is ready, with %.1f s of processor time", os.getpid(), time.process_time())
        orders.send_bytes(READY)
        order = orders.recv_bytes()
        priority.end()
        return decode_take_over(order)
    except (EOFError, OSError):
        raise SystemExit(0) from None


def compile_small_kernels(vllm_config: Any) -> None:
    """Compile kernels that the host compiles when a rank first needs them. CPU only; a failure is only logged.

    The first kernel takes two seconds, most of the time for the compiler itself. On another platform a process
    without a rank must not touch the device.
    """
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

    for rows in (2, 3):  # the compiler takes a single shape for the only shape
        batched_count_greater_than(torch.zeros(rows, 8), torch.zeros(rows, 1))
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        _compile_vocabulary_mask()


def _compile_vocabulary_mask() -> None:
    import torch
    from vllm.model_executor.layers.vocab_parallel_embedding import get_masked_input_and_mask

    for tokens in (8, 9):
        get_masked_input_and_mask(torch.zeros(tokens, dtype=torch.int64), 0, 256, 0, 512, 512)


def _take_trial_step(worker: Any) -> None:
    """Run the model once, so that everything made at a first step is made now. CPU only; a failure is only logged.

    The groups are placeholders: collectives send nothing, and the result is discarded.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        worker.model_runner.profile_run()
    except Exception:
        logger.warning("the trial step of a standby failed", exc_info=True)
