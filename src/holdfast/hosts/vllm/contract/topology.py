"""Lockstep groups of a topology, and what is not protected.

Reads the host's configuration; starts and changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from holdfast.core.errors import BadConfiguration, HookNotAttached
from holdfast.hosts.vllm.contract.name_touchpoints import GRPC_SERVER, OWN_SCHEDULERS

UNPROTECTED = "--no-enable-fault-tolerance serves it unprotected"


def lockstep_groups(vllm_config: Any) -> tuple[tuple[int, ...], ...]:
    """Return the engine ids of each lockstep group: all ranks of a mixture of experts, otherwise single ranks."""
    engine_ids = tuple(range(vllm_config.parallel_config.data_parallel_size))
    if vllm_config.model_config.is_moe:
        return (engine_ids,)
    return tuple((engine_id,) for engine_id in engine_ids)


def refuse_unprotected(vllm_config: Any) -> None:
    """Raise `BadConfiguration` for what this version does not protect, before any process starts."""
    parallel = vllm_config.parallel_config
    for what in (*_unbuilt(parallel), *_unbuilt_over_nodes(parallel), *_unproven(vllm_config)):
        raise BadConfiguration(f"this version does not protect {what}", hint=UNPROTECTED)
    if "holdfast" not in (os.environ.get("VLLM_PLUGINS") or "").split(","):
        raise HookNotAttached(
            "the HTTP endpoints did not attach: the host loads them only by name", hint="set VLLM_PLUGINS=holdfast"
        )


def _unbuilt(parallel: Any) -> Iterator[str]:
    if parallel.data_parallel_backend == "ray":
        yield "engine cores under Ray"
    if parallel.data_parallel_external_lb or parallel.data_parallel_hybrid_lb:
        yield "an instance behind an external or hybrid data-parallel load balancer"
    if parallel.enable_elastic_ep:
        yield "elastic expert parallelism"
    if parallel.data_parallel_size_local != parallel.data_parallel_size:
        yield "data-parallel ranks on several nodes"
    if parallel.data_parallel_size > 1 and parallel.data_parallel_rank_local is not None:
        yield "data-parallel ranks that are started one by one"


def _unbuilt_over_nodes(parallel: Any) -> Iterator[str]:
    if parallel.nnodes == 1:
        return
    from vllm.platforms import current_platform

    if parallel.data_parallel_size > 1:
        yield "data parallelism with --nnodes"
    if not current_platform.is_cpu():
        yield "an instance on several nodes on this platform: only CPUs were tried"


def _unproven(vllm_config: Any) -> Iterator[str]:
    """Yield what the host can do and no test has shown to be exact through a fault."""
    parallel = vllm_config.parallel_config
    if parallel.enable_fault_tolerance:
        yield "an instance beside the host's own fault tolerance, which would answer the same faults"
    if parallel.enable_eplb:
        yield "the balancing of experts (--enable-eplb)"
    if parallel.enable_batch_sharded_sampling and parallel.tensor_parallel_size > 1:
        yield "sampling that is split among ranks (--enable-batch-sharded-sampling)"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        yield "context parallelism"
    if (scheduler := _name_of(vllm_config.scheduler_config.scheduler_cls)) not in (None, *OWN_SCHEDULERS):
        yield f"the scheduler {scheduler}"


def _name_of(scheduler: str | type | None) -> str | None:
    return f"{scheduler.__module__}.{scheduler.__qualname__}" if isinstance(scheduler, type) else scheduler


def refuse_other_front_ends() -> None:
    """Raise `BadConfiguration` when the host serves from a program that has no endpoints for commands."""
    from vllm import envs

    if envs.VLLM_USE_RUST_FRONTEND and envs.VLLM_RUST_FRONTEND_PATH:
        raise BadConfiguration("this version does not protect the Rust front end", hint=UNPROTECTED)
    if GRPC_SERVER in sys.modules:
        refuse_grpc()


def refuse_grpc() -> None:
    """Raise `BadConfiguration`: a gRPC server has no endpoints for status and commands."""
    raise BadConfiguration("this version does not protect a gRPC server (--grpc)", hint=UNPROTECTED)
