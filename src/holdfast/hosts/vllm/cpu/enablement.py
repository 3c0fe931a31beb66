"""Attach the CPU enablement: on the CPU platform, in the process of a worker, before the worker makes communicators.

Owns the switch. A process without a worker imports nothing of the enablement, and other platforms stay unchanged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.contract.cpu_touchpoints import (
    CPU_ALL_GATHERV,
    CPU_EXPERTS,
    CPU_INTERMEDIATE_TENSORS,
    CPU_REDUCE_SCATTERV,
    CPU_SAMPLING,
    CPU_SHARED_MEMORY,
    WORKER_DEVICE,
)
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.touchpoint import Touchpoint
from holdfast.hosts.vllm.process.settings import inherited_settings

logger = logging.getLogger("holdfast")

# "0" leaves the host unchanged, also in a process without settings because fault tolerance is off.
SWITCH = "HOLDFAST_CPU_ENABLEMENT"


def attach_cpu_enablement() -> None:
    """Enable every worker that starts in the process, or in a fork of the process. Idempotent."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and _is_enabled():
        attach(WORKER_DEVICE, _enable_before)


def _is_enabled() -> bool:
    settings = inherited_settings()
    return os.environ.get(SWITCH) != "0" and (settings is None or settings.cpu_enablement)


def _enable_before(original: Callable[..., None], wrapper: Any, *args: Any, **kwargs: Any) -> None:
    _enable()
    original(wrapper, *args, **kwargs)


def _enable() -> None:
    from holdfast.hosts.vllm.cpu.collectives import all_gatherv, reduce_scatterv
    from holdfast.hosts.vllm.cpu.model_execution import (
        apply_to_local_experts,
        sparing_generators,
        with_receive_buffers,
    )

    attach(CPU_SHARED_MEMORY, _without_shared_memory)
    attach(CPU_EXPERTS, apply_to_local_experts)
    attach(CPU_INTERMEDIATE_TENSORS, with_receive_buffers)
    attach(CPU_SAMPLING, sparing_generators)
    _add_collective(CPU_ALL_GATHERV, all_gatherv)
    _add_collective(CPU_REDUCE_SCATTERV, reduce_scatterv)


def _without_shared_memory(original: Callable[..., bool], communicator: Any) -> bool:
    """Use gloo: over shared memory a rank spins for ever when its peer dies, and the wait cannot be broken."""
    logger.info("group %s runs over gloo instead of shared memory", communicator.unique_name)
    return False


def _add_collective(touchpoint: Touchpoint, collective: Callable[..., Any]) -> None:
    """Add a collective to the host's CPU communicator, unless the communicator has the collective already."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    name = touchpoint.name.rpartition(".")[2]
    if name not in vars(CpuCommunicator):
        attach(touchpoint, lambda original, communicator, *args, **kwargs: collective(communicator, *args, **kwargs))
