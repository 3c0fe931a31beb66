"""Parts of a worker that a rebuild cannot restore, as one sentence each. Read-only.

Addresses of peers' memory and captured handles of a communicator stay wrong when the groups are new. An empty answer
is a promise, so every unknown part counts as a limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from holdfast.hosts.vllm.communicators.placeholder_groups import SWITCHED_OFF
from holdfast.hosts.vllm.communicators.tracking import TrackedGroups

# Managers that reach the groups through the coordinators at every call and keep no group.
PLAIN_ALL2ALL = ("AgRsAll2AllManager",)

# Attribute of the device communicator -> its name. Each maps memory of its peers when it is made.
PEER_MEMORY = {
    "ca_comm": "custom all-reduce",
    "qr_comm": "quick all-reduce",
    "symm_mem_comm": "symmetric-memory all-reduce",
    "fi_ar_comm": "FlashInfer all-reduce",
    "fi_pcie_ipc_ar_comm": "FlashInfer PCIe all-reduce",
    "aiter_ar_comm": "AITER all-reduce",
}


def limits_of(coordinators: Iterable[Any], worker: Any | None) -> Iterator[str]:
    """Yield the limits of a worker's groups with peers."""
    shared = [c for c in coordinators if c.world_size > 1]
    for coordinator in shared:
        name = coordinator.unique_name
        if type(coordinator).__name__ == "StatelessGroupCoordinator":
            yield f"group {name} is stateless (elastic expert parallelism) and is not rebuilt"
        if coordinator.device_communicator is not None:
            yield from _communicator_limits(name, coordinator.device_communicator)
    if shared and worker is not None:
        yield from _graph_limits(worker.vllm_config)


def limits_of_torch(tracked: TrackedGroups) -> Iterator[str]:
    """Yield the limits of torch's groups."""
    from torch.distributed import distributed_c10d as c10d

    if tracked.unwatched:
        yield f"{tracked.unwatched} group(s) over gloo have connections that were not found"
    for group, name in c10d._world.pg_names.items():
        if not tracked.knows(group):
            yield f"group {name} was made before Holdfast attached"
    if os.environ.get("TORCH_GLOO_LAZY_INIT", "0") not in {"", "0"}:
        yield "TORCH_GLOO_LAZY_INIT: a group that has not connected yet cannot be broken"


def _communicator_limits(name: str, communicator: Any) -> Iterator[str]:
    for attribute, what in PEER_MEMORY.items():
        part = getattr(communicator, attribute, None)
        if part is not None and (not getattr(part, "disabled", False) or hasattr(part, SWITCHED_OFF)):
            yield f"group {name} uses {what}, whose buffers map memory of the old peers"
    if type(getattr(communicator, "dist_module", None)).__name__ == "_CPUSHMDistributed":
        yield f"group {name} uses the CPU's shared-memory collectives, which cannot be broken"
    manager = communicator.all2all_manager
    if manager is not None and type(manager).__name__ not in PLAIN_ALL2ALL:
        yield f"group {name} uses {type(manager).__name__}, whose buffers cannot be made again"
    pynccl = getattr(communicator, "pynccl_comm", None)
    if pynccl is not None and pynccl.world_size > 1 and pynccl.group is None:
        yield f"group {name} has an NCCL communicator made without a group, which cannot be made again"


def _graph_limits(vllm_config: Any) -> Iterator[str]:
    mode = vllm_config.compilation_config.cudagraph_mode
    if mode is not None and mode.name != "NONE":
        yield f"CUDA graphs ({mode.name}) are captured with the old communicators in them (--enforce-eager avoids it)"
    if _nccl_symmetric_memory():
        yield "NCCL's symmetric memory is registered with the old communicators"


def _nccl_symmetric_memory() -> bool:
    from vllm import envs

    return bool(envs.VLLM_USE_NCCL_SYMM_MEM)
