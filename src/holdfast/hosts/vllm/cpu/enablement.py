"""When and where the enablement attaches: on the CPU platform, in a process in which a worker is born, just before
that worker makes its communicators.

Owns the switch. A process without a worker imports nothing of this, and another platform's host stays as it is.
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

# "0" leaves the host as it is, also where a process inherits no settings because fault tolerance is off.
SWITCH = "HOLDFAST_CPU_ENABLEMENT"


def attach_cpu_enablement() -> None:
    """Let every worker that is born in this process, or forked from it, find what it lacks. Idempotent."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and _is_wanted():
        attach(WORKER_DEVICE, _enable_before)


def _is_wanted() -> bool:
    settings = inherited_settings()
    return os.environ.get(SWITCH) != "0" and (settings is None or settings.cpu_enablement)


def _enable_before(original: Callable[..., None], wrapper: Any, *args: Any, **kwargs: Any) -> None:
    _enable()
    original(wrapper, *args, **kwargs)


def _enable() -> None:
    from holdfast.hosts.vllm.cpu.collectives import all_gatherv, reduce_scatterv
    from holdfast.hosts.vllm.cpu.experts import apply_to_local_experts
    from holdfast.hosts.vllm.cpu.pipeline import with_receive_buffers
    from holdfast.hosts.vllm.cpu.sampling import sparing_generators

    attach(CPU_SHARED_MEMORY, _without_shared_memory)
    attach(CPU_EXPERTS, apply_to_local_experts)
    attach(CPU_INTERMEDIATE_TENSORS, with_receive_buffers)
    attach(CPU_SAMPLING, sparing_generators)
    _supply(CPU_ALL_GATHERV, all_gatherv)
    _supply(CPU_REDUCE_SCATTERV, reduce_scatterv)


def _without_shared_memory(original: Callable[..., bool], communicator: Any) -> bool:
    """Over shared memory a rank whose peer died spins for ever and nothing can break it off; over gloo it fails."""
    logger.info("group %s runs over gloo instead of shared memory", communicator.unique_name)
    return False


def _supply(lacking: Touchpoint, collective: Callable[..., Any]) -> None:
    """A collective of our own, until the host's CPU communicator has one."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    name = lacking.name.rpartition(".")[2]
    if name not in vars(CpuCommunicator):
        attach(lacking, lambda original, communicator, *args, **kwargs: collective(communicator, *args, **kwargs))
