"""Ranks of further nodes as the executor sees them: processes that their agents start, watch and kill."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import msgspec
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.v1.executor.multiproc_executor import WorkerProcHandle

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.protocol import QueueHandle, of_handle, to_handle
from holdfast.sentinel.nodes import NodeWatch

_handles = msgspec.msgpack.Decoder(QueueHandle)

# The view of further nodes in this engine core; none on a single node.
_current: NodeWatch | None = None


def set_node_watch(watch: NodeWatch) -> None:
    """Let the executor of this engine core see further nodes. Call before the executor is made."""
    global _current
    _current = watch


def node_watch() -> NodeWatch | None:
    """Return the view of further nodes; None on a single node."""
    return _current


@dataclass(frozen=True)
class RemoteProcess:
    """The process of a rank of a further node; has what the executor needs of a local process."""

    watch: NodeWatch
    rank: int

    @property
    def pid(self) -> int | None:
        """Return the process id on the rank's node; None where no process is believed to live."""
        return self.watch.pid(self.rank)

    def is_alive(self) -> bool:
        """Return whether the process is believed to live."""
        return self.pid is not None

    def kill(self) -> None:
        """Have the process killed; does not wait."""
        self.watch.end_rank(self.rank)

    def join(self, timeout_s: float) -> None:
        """Wait until the agent tells of the end."""
        self.watch.await_ended(self.rank, timeout_s)


def remote_worker(watch: NodeWatch, rank: int, replies: Any = None) -> WorkerProcHandle:
    """Return the host's handle of a worker of a further node."""
    return WorkerProcHandle(RemoteProcess(watch, rank), rank, replies, [])


class RemoteReplacement:
    """A process that an agent starts for a rank; has what a replacement needs of a local process."""

    def __init__(self, watch: NodeWatch, rank: int, queue: Any) -> None:
        self.rank: int | None = rank
        self.pid: int | None = None
        self.was_standby = False
        self._watch = watch
        self._order = watch.start_rank(rank, msgspec.msgpack.encode(of_handle(queue)))
        self._started_at = time.monotonic()

    def await_ready(self, deadline: float) -> Any:
        """Return the host's handle of the worker once the weights are loaded. Raises `RecoveryFailed`."""
        assert self.rank is not None
        started = self._watch.await_started(self._order, self.rank, deadline)
        self.pid = started.pid
        try:
            handle = to_handle(_handles.decode(started.queue))
        except msgspec.DecodeError as error:
            raise RecoveryFailed(f"the queue of rank {self.rank} is not understood: {error}") from None
        return remote_worker(self._watch, self.rank, MessageQueue.create_from_handle(handle, -1))

    def kill(self) -> None:
        """Have the process killed; does not wait for the end."""
        assert self.rank is not None
        self._watch.end_rank(self.rank)
