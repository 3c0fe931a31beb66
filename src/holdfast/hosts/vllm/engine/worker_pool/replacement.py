"""Gives ranks of an engine core new processes: the dead go, the newcomers load, everybody meets at a new queue.

The queue over which an engine core calls its workers cannot outlive a reader: a dead one marks nothing read,
and a new one begins at the front. So the survivors are told over the old queue to read from a new one, once
every newcomer has come that far. Runs on the busy loop's thread; every wait is bounded.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm import envs
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.utils.network_utils import get_ip

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import ReplacementProcesses
from holdfast.hosts.vllm.engine.worker_pool.spawning import KILL_TIMEOUT_S
from holdfast.hosts.vllm.process.queues import retire, wait_until_ready
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.hosts.vllm.protocol.calls import JOIN, PREPARE, JoinCommand, encode, of_handle

if TYPE_CHECKING:
    from holdfast.hosts.vllm.engine.worker_pool.executor import WorkerPoolExecutor

logger = logging.getLogger("holdfast")


@dataclass(frozen=True)
class Replaced:
    """What a replacement came to."""

    pids: dict[int, int]  # the new process of each rank
    standbys_used: int
    elapsed_s: float


def replace_ranks(
    executor: WorkerPoolExecutor, ranks: Sequence[int], start_timeout_s: float, timeout_s: float
) -> Replaced:
    """Raises `RecoveryFailed` or `PeerSilent`; it may then be called again, with the same ranks or more."""
    began = time.monotonic()
    _end(executor, ranks)
    queue = _new_queue(executor)
    newcomers = ReplacementProcesses(executor, ranks, queue.export_handle())
    try:
        newcomers.start()
        handles = newcomers.await_ready(began + start_timeout_s)
        _join(executor, ranks, queue, time.monotonic() + timeout_s, handles)
    except BaseException:
        newcomers.kill()
        raise
    _prepare(executor, ranks, time.monotonic() + start_timeout_s)
    if (config := inherited_settings()) is not None:
        remove_dead_segments(config.runtime_dir)
    return Replaced(newcomers.pids, newcomers.standbys_used, time.monotonic() - began)


def _end(executor: WorkerPoolExecutor, ranks: Sequence[int]) -> None:
    """The processes of these ranks are gone when this returns."""
    executor.stop_watching()
    for rank in ranks:
        worker = executor.workers[rank]
        worker.proc.kill()
        if worker.death_writer is not None:
            worker.death_writer.close()
            worker.death_writer = None
    for rank in ranks:
        executor.workers[rank].proc.join(KILL_TIMEOUT_S)
        if executor.workers[rank].proc.is_alive():
            raise RecoveryFailed(f"the old process of rank {rank} does not go")


def _new_queue(executor: WorkerPoolExecutor) -> Any:
    """As the host makes it."""
    return MessageQueue(
        executor.world_size,
        executor.local_world_size,
        max_chunk_bytes=envs.VLLM_MQ_MAX_CHUNK_BYTES_MB * 1024 * 1024,
        connect_ip=get_ip(),
        enable_shm_tensor_arena=executor.parallel_config.enable_shm_tensor_arena,
    )


def _join(executor: WorkerPoolExecutor, ranks: Sequence[int], queue: Any, deadline: float, handles: list[Any]) -> None:
    """Everybody reads from the new queue."""
    nonce = uuid.uuid4().hex
    survivors = [rank for rank in range(executor.world_size) if rank not in ranks]
    if survivors:
        order = JoinCommand(nonce=nonce, queue=of_handle(queue.export_handle()), timeout_s=deadline - time.monotonic())
        executor.enqueue((JOIN, (encode(order),), {}, None), deadline - time.monotonic())
    wait_until_ready(queue, deadline, "a rank does not come to the new queue")
    for rank, handle in zip(ranks, handles, strict=True):
        retired = executor.response_mqs[rank]
        executor.workers[rank] = handle
        executor.response_mqs[rank] = handle.worker_response_mq
        wait_until_ready(handle.worker_response_mq, deadline, f"rank {rank} does not answer")
        retire(retired)
    executor.await_each(nonce, survivors, deadline)
    retired = executor.rpc_broadcast_mq
    executor.attach_queue(queue)
    retire(retired)
    executor.futures_queue.clear()
    executor.is_failed = False
    executor.start_worker_monitor()


def _prepare(executor: WorkerPoolExecutor, ranks: Sequence[int], deadline: float) -> None:
    """The newcomers get their KV cache, with the configuration of the first ones: nothing is measured again."""
    nonce = uuid.uuid4().hex
    call = (nonce, tuple(ranks), executor.kv_cache_layout, executor.kv_cache_configs)
    executor.call_each((PREPARE, call, {}, None), nonce, range(executor.world_size), deadline)
