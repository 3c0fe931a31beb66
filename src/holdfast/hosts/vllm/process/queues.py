"""Message queues of the host: paths of their sockets, release, and a bounded wait for the other side."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from holdfast.core.errors import PeerSilent
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.name_touchpoints import EXECUTOR_FAILED
from holdfast.hosts.vllm.contract.worker_touchpoints import SOCKET_PATH
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.sockets import IPC, remove_sockets, try_out
from holdfast.progress.places import ready_reserve

LOOK_S = 0.1  # interval at which a writer that waits for room looks whether a reader has failed


def calls_queue(executor: Any) -> Any:
    """Make a queue for the calls of an executor to its workers, as the host does."""
    from vllm import envs
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
    from vllm.utils.network_utils import get_ip

    return MessageQueue(
        executor.world_size,
        executor.local_world_size,
        max_chunk_bytes=envs.VLLM_MQ_MAX_CHUNK_BYTES_MB * 1024 * 1024,
        connect_ip=get_ip(),
        enable_shm_tensor_arena=executor.parallel_config.enable_shm_tensor_arena,
    )


def retire(queue: Any) -> None:
    """Release the sockets and the memory of a queue without readers. On the thread that used the queue.

    The host leaves the release to the garbage collector, which may run late: an exception can still refer to a frame
    that waited for the queue.
    """
    unlink_sockets(queue)
    queue.shutting_down = True
    for socket in (queue.local_socket, queue.remote_socket):
        if socket is not None:
            socket.context.destroy(linger=0)  # the queue's own context, with all sockets
    queue.buffer = None


def unlink_sockets(queue: Any) -> None:
    """Remove the socket files of a queue, which ZeroMQ leaves behind."""
    remove_sockets((queue.handle.local_subscribe_addr, queue.handle.local_notify_addr))


def wait_until_ready(queue: Any, deadline: float, silence: str) -> None:
    """Run the host's own unbounded handshake within a bound.

    Raises:
        PeerSilent: with the message `silence`, past `deadline` (monotonic seconds).
    """
    sockets = [socket for socket in (queue.local_socket, queue.remote_socket) if socket is not None]
    for socket in sockets:
        socket.setsockopt(zmq.RCVTIMEO, max(1, int(1000 * (deadline - time.monotonic()))))
    try:
        queue.wait_until_ready()
    except zmq.Again:
        raise PeerSilent(silence) from None
    finally:
        for socket in sockets:
            socket.setsockopt(zmq.RCVTIMEO, -1)


def bounded(queue: Any, has_failed: Callable[[], bool]) -> Any:
    """Have `enqueue` of a queue raise the host's "Executor failed." once `has_failed`, instead of waiting for ever.

    The ring that carries calls to workers is short, and a dead reader frees nothing. Costs nothing while the ring has
    room: only a writer that waits looks at `has_failed`.
    """
    enqueue = functools.partial(type(queue).enqueue, weakref.proxy(queue))

    def enqueue_bounded(call: Any, timeout: float | None = None) -> None:
        if timeout is not None:
            return enqueue(call, timeout)
        while True:
            try:
                return enqueue(call, LOOK_S)
            except TimeoutError:
                if has_failed():
                    raise RuntimeError(EXECUTOR_FAILED) from None

    queue.enqueue = enqueue_bounded
    return queue


def interruptible(queue: Any) -> Any:
    """Have `dequeue` of a queue from another node notice `shutdown`, which wakes local readers only."""
    if queue.remote_socket is None:
        return queue
    owner = weakref.proxy(queue)
    dequeue = functools.partial(type(queue).dequeue, owner)

    def dequeue_in_slices(timeout: float | None = None, indefinite: bool = False) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left_s = LOOK_S if deadline is None else min(LOOK_S, max(0.0, deadline - time.monotonic()))
            if owner.remote_socket.poll(1000 * left_s):
                return dequeue(0)
            if owner.shutting_down:
                raise RuntimeError("cancelled")  # as the host says for a local queue
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError

    queue.dequeue = dequeue_in_slices
    return queue


def attach_socket_paths() -> None:
    """Attach the hook that draws the paths of the host's queues, in an engine core or a worker."""
    attach(SOCKET_PATH, _in_a_folder_with_room)


def _in_a_folder_with_room(original: Callable[[], str]) -> str:
    address, config = original(), inherited_settings()
    if config is None or not config.runtime_dir:
        return address
    path = Path(address.removeprefix(IPC))
    try:
        try_out(path.parent, 1)
    except OSError:
        if (reserve := ready_reserve(config.runtime_dir)) is not None:
            return f"{IPC}{reserve / path.name}"
    return address
