"""Start without peers: process groups that send nothing, until the first rebuild replaces them with real groups.

A replacement worker, a standby and an engine core that joins a lockstep group start while the peers are paused, or
long before they are needed. Their process groups are placeholders with the description of the real groups. So weights
and KV cache are loaded without any peer, and a failure meanwhile costs the peers nothing.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.communicators.rebuild import make_stateless_group
from holdfast.hosts.vllm.communicators.tracking import TRACKED, TorchGroup
from holdfast.hosts.vllm.contract.communicator_touchpoints import (
    ENGINES_GROUP,
    PEER_MEMORY,
    PYNCCL_INIT,
    TORCH_GROUP,
)
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.worker_touchpoints import BROADCAST_QUEUE, INIT_GROUPS, SAME_NODE
from holdfast.hosts.vllm.process.settings import joins_epoch

SWITCHED_OFF = "holdfast_switched_off"  # attribute of a part that the peers have and a replacement does not yet
PLACEHOLDER = "fake"  # torch's own name for a backend that sends nothing
_GROUP_OF_ONE_TIMEOUT_S = 10.0  # no peer is waited for

_placeholders = False
_ranks_per_node = 0  # 0: all ranks are on one node
_default_backend: Any = None


def attach_solo_join_hooks() -> None:
    """Start without peers in an engine core that joins a lockstep group, and in its workers; elsewhere do nothing."""
    if joins_epoch() is not None:
        use_placeholder_groups()
        attach(ENGINES_GROUP, _make_group_of_one)


def use_placeholder_groups(ranks_per_node: int = 0) -> None:
    """Make placeholders instead of real groups from now on. Call before the process makes any group.

    Args:
        ranks_per_node: of an instance on several nodes; 0 where all ranks are on one node.
    """
    global _placeholders, _ranks_per_node

    _ranks_per_node = ranks_per_node
    attach(INIT_GROUPS, _init_without_peers)
    attach(TORCH_GROUP, _make_placeholder)
    attach(SAME_NODE, _on_node_of)
    attach(BROADCAST_QUEUE, _no_broadcast_queue)
    if not _on_cpu():
        attach(PYNCCL_INIT, _no_nccl_yet)
        for touchpoint in PEER_MEMORY:
            attach(touchpoint, _no_peer_memory_yet)
    _placeholders = True


def uses_placeholder_groups() -> bool:
    """Tell whether new groups of the process are placeholders."""
    return _placeholders


def use_real_groups() -> None:
    """Make real groups from now on."""
    global _placeholders
    _placeholders = False


# ---- the host's calls


def _make_group_of_one(original: Callable[..., Any], parallel_config: Any, return_store: bool = False) -> Any:
    """Make the data-parallel group of an engine core with a single member, in place of the host's with all."""
    from torch.distributed import HashStore

    store = HashStore()
    deadline = time.monotonic() + _GROUP_OF_ONE_TIMEOUT_S
    group = make_stateless_group(store, 0, 1, parallel_config.cpu_distributed_timeout, deadline)
    return (group, store) if return_store else group


def _init_without_peers(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Initialise torch's default group with a store of the process itself, where the host would meet the peers."""
    from torch.distributed import HashStore

    given = inspect.signature(original).bind(*args, **kwargs).arguments
    original(**{**given, "init_method": None, "store": HashStore()})


def _make_placeholder(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Make a group that sends nothing, tracked with the description of the real group."""
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    if not _placeholders:
        return TRACKED.make(lambda: original(*args, **kwargs), TorchGroup.from_arguments(given))
    placeholder = {**given, "backend": PLACEHOLDER, "backend_options": None, "device_id": None}
    real = TorchGroup.from_arguments({**given, "backend": _real_backend(given)})
    return TRACKED.make(lambda: original(**placeholder), real)


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _no_nccl_yet(original: Callable[..., None], comm: Any, group: Any, device: Any, *args: Any, **kwargs: Any) -> None:
    """Make a communicator of the host without NCCL behind it; the rebuild calls `__init__` again, over real groups.

    The host then takes torch's group, which is a placeholder too. NCCL would wait for the peers for ever.
    """
    size = group.world_size if hasattr(group, "world_size") else group.size()
    if not _placeholders or size == 1:
        original(comm, group, device, *args, **kwargs)
        return
    comm.group, comm.device, comm.world_size = group, _as_device(device), size
    comm.rank = group.rank if isinstance(group.rank, int) else group.rank()
    comm.available, comm.disabled, comm.comm = False, True, None


def _no_peer_memory_yet(original: Callable[..., None], part: Any, *args: Any, **kwargs: Any) -> None:
    """Make a part that shares memory with peers as switched off, which the host then leaves out."""
    if not _placeholders:
        original(part, *args, **kwargs)
        return
    part.disabled = True
    setattr(part, SWITCHED_OFF, True)


def _as_device(device: Any) -> Any:
    import torch

    return torch.device(f"cuda:{device}") if isinstance(device, int) else torch.device(device)


def _real_backend(given: dict[str, Any]) -> Any:
    """Return the backend of the real group: the host copies the default group's, which is a placeholder's here."""
    global _default_backend
    if not given["global_ranks_in_group"]:
        _default_backend = given["backend"]
    return _default_backend if str(given["backend"]) == PLACEHOLDER else given["backend"]


def _on_node_of(original: Callable[..., list[bool]], pg: Any, source_rank: int = 0) -> list[bool]:
    """Answer for the peers, which the host would ask: which ranks of a group are on the node of one of them."""
    if not _ranks_per_node:
        return [True] * int(pg.size() if hasattr(pg, "size") else pg.world_size)
    from torch.distributed import get_process_group_ranks

    nodes = [rank // _ranks_per_node for rank in get_process_group_ranks(pg)]
    return [node == nodes[source_rank] for node in nodes]


def _no_broadcast_queue(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Make no queue: coordinators then broadcast objects over the group. A rebuild removes the peers' queues."""
