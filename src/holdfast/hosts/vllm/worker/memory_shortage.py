"""Memory of the device that is used up: how an error tells, and what is given back before the step is tried again."""

from __future__ import annotations

import contextlib
import gc
import logging
import traceback
from collections.abc import Iterator

from holdfast.hosts.vllm.contract.name_touchpoints import TOO_LITTLE_FREE

logger = logging.getLogger("holdfast")

_SENTENCES = ("out of memory", "can't allocate memory", TOO_LITTLE_FREE)  # torch's for devices and CPU, the host's
_MAX_CHAIN = 16


def is_memory_shortage(error: BaseException) -> bool:
    """Return whether an error, or an error that caused it, says that memory is used up."""
    return any(_says_so(one) for one in _chain(error))


def release_memory(error: BaseException) -> None:
    """Drop the local variables of the calls that raised, tensors among them; empty the allocator if memory is short.

    The error itself, with its lines, is left: the host holds and logs the error. Never raises.
    """
    with contextlib.suppress(Exception):
        for one in _chain(error):
            traceback.clear_frames(one.__traceback__)
        if is_memory_shortage(error):
            _empty_allocator()


def _empty_allocator() -> None:
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
        logger.warning("memory of the device is used up: the allocator was emptied before the step is tried again")


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return any(sentence in text for sentence in _SENTENCES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors behind it."""
    found: BaseException | None = error
    for _ in range(_MAX_CHAIN):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__
