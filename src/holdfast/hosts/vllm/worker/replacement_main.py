"""Main functions of a process that becomes a worker: started for a rank at once, or kept as a standby."""

from __future__ import annotations

import contextlib
import gc
import importlib
import socket
import threading
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import importing
from holdfast.hosts.vllm.process.forking import READY, serve_forks
from holdfast.hosts.vllm.protocol import to_handle
from holdfast.hosts.vllm.worker.standby import await_assignment, compile_small_kernels, wait_after_loading

# Modules imported inside functions on the way to the first step. A missing module costs time, nothing else.
_IMPORTED_LATE = (
    "setproctitle",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.quantization.online.base",
)
_IMPORTED_LATE_ON_CPU = (
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "vllm.utils.cpu_triton_utils",
    "vllm.v1.attention.backends.cpu_attn",
)


def replacement_main(**kwargs: Any) -> None:
    """Run the worker of a rank that is known already.

    Args:
        kwargs: of the host's `WorkerProc.worker_main`.
    """
    _import_everything(kwargs["vllm_config"])
    _run_worker(kwargs)


def standby_main(orders: Connection, preload: bool, **kwargs: Any) -> None:
    """Run a standby until it is assigned a rank, and then the worker of that rank.

    Args:
        orders: pipe over which the assignment arrives.
        preload: load the weights of the rank in `kwargs` before waiting.
        kwargs: of the host's `WorkerProc.worker_main`; without `preload` the assignment replaces the rank.
    """
    _import_everything(kwargs["vllm_config"])
    with importing():  # tracing imports as much again
        compile_small_kernels(kwargs["vllm_config"])
    if preload:
        wait_after_loading(orders)
    else:
        order = await_assignment(orders)
        kwargs |= {
            "rank": order.rank,
            "local_rank": order.rank % kwargs["vllm_config"].parallel_config.local_world_size,
            "is_driver_worker": order.is_driver,
            "input_shm_handle": to_handle(order.queue),
        }
    _run_worker(kwargs)


def standby_parent_main(requests: socket.socket, vllm_config: Any) -> NoReturn:
    """Import and compile all that a worker needs, report that this is done, and fork standbys on request.

    Raises:
        SystemExit: a thread or a device context exists, which no forked process could use.
    """
    _import_everything(vllm_config)
    compile_small_kernels(vllm_config)
    import torch

    if threading.active_count() > 1 or torch.cuda.is_initialized():
        raise SystemExit("no standby can be forked: the imports made a thread or a device context")
    gc.disable()  # a collection would write into pages that are shared with the forked processes
    priority.end()
    requests.send(READY)
    serve_forks(requests)


def _run_worker(kwargs: dict[str, Any]) -> None:
    from vllm.v1.executor.multiproc_executor import WorkerProc

    WorkerProc.worker_main(**kwargs)


def _import_everything(vllm_config: Any) -> None:
    """Attach the hooks, and import all that a worker imports sooner or later: most of the time of a start."""
    with importing():
        _attach_hooks(vllm_config.parallel_config)
        from vllm.model_executor.models import ModelRegistry
        from vllm.platforms import current_platform
        from vllm.plugins import load_general_plugins
        from vllm.utils.import_utils import resolve_obj_by_qualname

        load_general_plugins()
        resolve_obj_by_qualname(vllm_config.parallel_config.worker_cls)
        ModelRegistry.resolve_model_cls(vllm_config.model_config.architectures, vllm_config.model_config)
        current_platform.import_kernels()
        for name in (*_IMPORTED_LATE, *(_IMPORTED_LATE_ON_CPU if current_platform.is_cpu() else ())):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _attach_hooks(parallel: Any) -> None:
    from holdfast.hosts.vllm.communicators.placeholder_groups import use_placeholder_groups

    ranks_per_node = parallel.local_world_size if parallel.nnodes_within_dp > 1 else 0
    use_placeholder_groups(
        ranks_per_node
    )  # before the hooks of every worker: the first hook attached to a target stays
    from holdfast.hosts.vllm.worker.worker import attach_worker_hooks

    attach_worker_hooks()
