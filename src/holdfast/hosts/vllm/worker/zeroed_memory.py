"""Large tensors of zeros in memory that the system zeroes page by page, when a page is first written.

A KV cache starts as zeros. Writing the zeros takes half a second per GiB, in the middle of a recovery, while fresh
memory of the system is zero already, and most of a cache is not touched in the first seconds.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LARGE_BYTES = 16 << 20  # smaller tensors are not worth a mapping


class FreshZeros(TorchFunctionMode):
    """Mode in which large CPU tensors of zeros cost nothing until they are written."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is torch.zeros and set(options) <= {"dtype", "device"}:
            fresh = _fresh_zeros(args, options.get("dtype"), options.get("device"))
            if fresh is not None:
                return fresh
        return func(*args, **options)


def _fresh_zeros(size: Any, dtype: torch.dtype | None, device: Any) -> torch.Tensor | None:
    """Return a tensor over fresh memory; None where `torch.zeros` is as good, or the only way."""
    dtype = dtype or torch.get_default_dtype()
    device = torch.get_default_device() if device is None else torch.device(device)
    shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)
    n_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or n_bytes < LARGE_BYTES:
        return None
    try:
        pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        return None
    return torch.frombuffer(pages, dtype=dtype).view(shape)
