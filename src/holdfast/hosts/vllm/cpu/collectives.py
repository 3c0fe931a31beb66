"""Collectives with a different share for each rank, which gloo and the host's CPU communicator lack.

Data-parallel ranks of a mixture of experts exchange as many tokens as each rank has. Built from collectives of equal
shares, so that breaking the group fails these collectives like any other. Changes no input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_gatherv(
    communicator: Any, input_: Tensor | list[Tensor], dim: int = 0, sizes: Sequence[int] | None = None
) -> Tensor | list[Tensor]:
    """Gather the shares of all ranks along `dim`, in the order of ranks; a list of tensors tensor by tensor.

    Args:
        sizes: tokens of each rank along `dim`; None: every rank has as many as the caller.
    """
    if isinstance(input_, list | tuple):
        return [_gather(communicator, tensor, dim, sizes) for tensor in input_]
    return _gather(communicator, input_, dim, sizes)


def _gather(communicator: Any, share: Tensor, dim: int, sizes: Sequence[int] | None) -> Tensor:
    share = share.movedim(dim, 0)
    sizes = sizes or [share.shape[0]] * communicator.world_size
    padded = _padded(share, max(sizes))
    gathered = padded.new_empty((communicator.world_size, *padded.shape))
    dist.all_gather_into_tensor(gathered.flatten(0, 1), padded, group=communicator.device_group)
    shares = [gathered[rank, :size] for rank, size in enumerate(sizes)]
    return torch.cat(shares).movedim(0, dim).contiguous()


def _padded(share: Tensor, length: int) -> Tensor:
    """Pad the share with zeros: gloo gathers equal shares only."""
    if share.shape[0] == length:
        return share.contiguous()
    padded = share.new_zeros((length, *share.shape[1:]))
    padded[: share.shape[0]] = share
    return padded


def reduce_scatterv(communicator: Any, input_: Tensor, dim: int = -1, sizes: Sequence[int] | None = None) -> Tensor:
    """Return the rank's share along `dim` of the sum over all ranks.

    Args:
        sizes: tokens of each rank along `dim`; None: equal shares.
    """
    total = input_.movedim(dim, 0).clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=communicator.device_group)
    sizes = sizes or [total.shape[0] // communicator.world_size] * communicator.world_size
    begin = sum(sizes[: communicator.rank_in_group])
    share = total[begin : begin + sizes[communicator.rank_in_group]]
    # A copy: a view would keep every rank's tokens in memory.
    return share.movedim(0, dim).clone(memory_format=torch.contiguous_format)
