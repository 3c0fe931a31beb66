"""Makes process groups again: torch's own under their old names, and the stateless ones of the host.

A group keeps its name, so what looks one up by name finds the new one, and the names agree between the
ranks whatever they did before. Every wait ends with the deadline, or at once when the store closes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d

from holdfast.hosts.vllm.communicators.tracking import TorchGroup, TrackedGroups


def standing_groups(tracked: TrackedGroups) -> list[tuple[TorchGroup, Any]]:
    """Those that torch keeps now: not what the host ended, nor what an earlier rebuild left behind."""
    return [(description, group) for description, group in tracked.torch_groups() if group in c10d._world.pg_map]


def make_torch_groups(groups: Sequence[TorchGroup], store: Any, deadline: float) -> list[Any]:
    """New groups for old descriptions, the default one first. Whatever torch had before is destroyed.

    Args:
        deadline: on the monotonic clock, for meeting the peers; the groups get their own timeouts.
    """
    counter = c10d._world.group_count
    if c10d.is_initialized():
        c10d.destroy_process_group()
    made = [_make(group, store, deadline) for group in groups]
    c10d._world.group_count = counter  # names of groups that the host may still make stay new
    return made


def make_stateless_group(store: Any, rank: int, size: int, timeout: timedelta | None, deadline: float) -> Any:
    """A gloo group that torch does not keep, made as the host makes it. Timeout: its own, else torch's."""
    from vllm.distributed import utils

    group = utils.init_gloo_process_group(store, rank, size, _left(deadline))
    group._get_backend(torch.device("cpu"))._set_default_timeout(timeout or c10d.default_pg_timeout)
    return group


def _make(group: TorchGroup, store: Any, deadline: float) -> Any:
    made, _ = c10d._new_process_group_helper(
        group.size,
        group.rank,
        list(group.ranks),
        group.backend,
        store,
        group.name,
        timeout=_left(deadline),
        **group.options,
    )
    if group.is_default:
        c10d._update_default_pg(made)
    ranks = group.ranks or range(group.size)
    c10d._world.pg_group_ranks[made] = {rank: index for index, rank in enumerate(ranks)}
    c10d._set_pg_timeout(group.timeout, made)
    return made


def _left(deadline: float) -> timedelta:
    """At least a moment: torch takes nothing for no bound at all."""
    return timedelta(seconds=max(0.01, deadline - time.monotonic()))
