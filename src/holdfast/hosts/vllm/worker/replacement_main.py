"""The process that takes a rank's place: started when it is needed, or kept ready as a standby.

A standby waits in one of two places, for one message: with everything imported and no rank yet, or as one
rank with its weights read. What is said to it is a typed message over the pipe that it was started with; when
the pipe closes, its engine core is gone and so is its purpose.
"""

from __future__ import annotations

import contextlib
import importlib
from multiprocessing.connection import Connection
from typing import Any

from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import freeze_objects, importing
from holdfast.hosts.vllm.protocol.calls import TakeOver, decode_take_over, to_handle
from holdfast.hosts.vllm.worker.warmup import compile_small_kernels, run_once_alone

READY = b"ready"

# What is imported inside functions on the way to the first step. Where one is not there it costs time, nothing else.
_IMPORTED_LATE = (
    "holdfast.hosts.vllm.worker.zeroed_memory",
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

# What this process still waits for once its weights are read; none where it was started for a rank at once.
_awaited: Connection | None = None


def replacement_main(**kwargs: Any) -> None:
    """The main function of a worker that was started for a rank at once."""
    _import_everything(kwargs["vllm_config"])
    _run(kwargs)


def standby_main(orders: Connection, preload: bool, **kwargs: Any) -> None:
    """The main function of a standby. `kwargs` are a worker's; without `preload` its rank is still to be told."""
    global _awaited
    _import_everything(kwargs["vllm_config"])
    _compile(kwargs["vllm_config"])
    if preload:
        _awaited = orders
    else:
        order = _await_order(orders)
        kwargs |= {
            "rank": order.rank,
            "local_rank": order.rank,
            "is_driver_worker": order.is_driver,
            "input_shm_handle": to_handle(order.queue),
        }
    _run(kwargs)


def awaited_queue(given: Any, worker: Any) -> Any:
    """The queue that a worker with its weights read is to read from; a standby waits here until it is told."""
    if _awaited is None:
        return given
    import setproctitle  # the host's

    run_once_alone(worker)
    freeze_objects()  # the model too: to look it through would be the first thing that its first step waits for
    title = setproctitle.getproctitle()
    setproctitle.setproctitle(title.replace("Worker", "Standby"))  # whoever looks for a rank's process finds one
    order = _await_order(_awaited)
    setproctitle.setproctitle(title)
    return to_handle(order.queue)


def _await_order(orders: Connection) -> TakeOver:
    """Say that it is ready, and wait. Raises `SystemExit` once its engine core is gone."""
    try:
        orders.send_bytes(READY)
        order = orders.recv_bytes()
        priority.end()
        return decode_take_over(order)
    except (EOFError, OSError):
        raise SystemExit(0) from None


def _attach() -> None:
    from holdfast.hosts.vllm.worker.placeholder_groups import stand_alone

    stand_alone()  # before the hooks of every worker: the first to attach stays
    from holdfast.hosts.vllm.worker.worker import attach_worker_hooks

    attach_worker_hooks()


def _run(kwargs: dict[str, Any]) -> None:
    from vllm.v1.executor.multiproc_executor import WorkerProc

    WorkerProc.worker_main(**kwargs)


def _import_everything(vllm_config: Any) -> None:
    """What a worker imports sooner or later: most of the time that its start takes."""
    with importing():
        _attach()
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


def _compile(vllm_config: Any) -> None:
    """Tracing imports as much again."""
    with importing():
        compile_small_kernels(vllm_config)
