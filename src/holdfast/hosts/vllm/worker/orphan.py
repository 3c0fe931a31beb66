"""A worker whose engine core has died: it waits, fenced, for the engine core that takes the dead one's place.

The end of an engine core shows as the end of the pipe between the two. An engine core that ends in order says so
before. A worker ends with the process that owns the engine cores, and after a bound; so no worker is left behind.
Only a worker that was told that it may outlive its engine core waits at all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

from holdfast.core.errors import PeerSilent
from holdfast.core.faults.redaction import account_of
from holdfast.hosts.vllm.contract.worker_touchpoints import CANCELLED
from holdfast.hosts.vllm.process.members import owner_of
from holdfast.hosts.vllm.process.queues import retire, wait_until_ready
from holdfast.hosts.vllm.protocol import (
    ENDS,
    MAX_ADOPTION_BYTES,
    Adopt,
    Adopted,
    adoption_path,
    decode_adopt,
    encode,
    of_handle,
    to_handle,
)
from holdfast.hosts.vllm.worker.start_answers import StartAnswers

logger = logging.getLogger("holdfast")

EXIT_WITHIN_S = 2.0  # where the main thread is in a call that no signal ends
DRAIN_S = 1.0  # for the part of a call that comes over a socket
FLUSH_S = 5.0  # for outputs that are still computed


class EngineLink:
    """The tie of a worker to its engine core, and after the engine core's death to the next one.

    Args:
        proc: the host's worker process.
        shutdown_requested: of the host: set before an end that was asked for.
        bound_s: for which the worker waits to be adopted.
        serve: has the worker's sentinel report to the engine core of an `Adopt`, with no request known and the fence
            open. Raises where the worker cannot take work.
    """

    def __init__(
        self,
        proc: Any,
        shutdown_requested: threading.Event,
        runtime_dir: str,
        bound_s: float,
        serve: Callable[[Adopt], None],
    ) -> None:
        self.answers = StartAnswers()
        self._proc = proc
        self._shutdown_requested = shutdown_requested
        self._runtime_dir = runtime_dir
        self._bound_s = bound_s
        self._serve = serve
        self._configuration: str | None = None  # fingerprint; set once the worker may outlive its engine core
        self._died_at: float | None = None
        self._old_replies: Any = None

    # ---- the engine core's calls: main thread

    def outlive(self, configuration: str) -> None:
        """Outlive the engine core from now on: the worker is ready, and the engine core has this configuration."""
        self._configuration = configuration
        self.answers.end(self._proc)

    # ---- the pipe to the engine core: a thread of its own

    def watch(self, pipe: Any) -> None:
        """Watch for the end of the engine core that holds the other end of `pipe`."""
        threading.Thread(target=self._await_end, args=(pipe,), daemon=True, name="DeathPipeMonitor").start()

    def _await_end(self, pipe: Connection) -> None:
        in_order = False
        with contextlib.suppress(EOFError, OSError):
            in_order = pipe.recv_bytes(MAX_ADOPTION_BYTES) == ENDS
        proc = self._proc
        if in_order or self._configuration is None:
            self._shutdown_requested.set()
        else:
            logger.warning("rank %d: the engine core has died; waiting for the next one", proc.rank)
            self._died_at = time.monotonic()
            # Nobody reads replies any more, and a full queue would hold the thread that writes.
            self._old_replies, proc.worker_response_mq = proc.worker_response_mq, None
            threading.Thread(target=self._end_by_bound, args=(self._died_at,), daemon=True).start()
        for queue in (proc.rpc_broadcast_mq, proc.worker_response_mq):
            if queue is not None:
                queue.shutdown()

    def _end_by_bound(self, died_at: float) -> None:
        """End the process after the bound, wherever the main thread may be; or at once with the owner's process."""
        owner = self._open_owner()
        if owner is not None:
            with contextlib.closing(_Descriptor(owner)):
                until = died_at + self._bound_s
                while self._died_at == died_at and time.monotonic() < until:
                    if select.select([owner], [], [], min(1.0, max(0.0, until - time.monotonic())))[0]:
                        break
        if self._died_at == died_at:
            logger.warning("rank %d ends: nothing took the place of its engine core", self._proc.rank)
            timer = threading.Timer(EXIT_WITHIN_S, os._exit, [0])
            timer.daemon = True
            timer.start()
            os.kill(os.getpid(), signal.SIGTERM)  # for the main thread, which the host ends in order

    def _open_owner(self) -> int | None:
        owner = owner_of(self._runtime_dir)
        if owner is None or owner.has_ended:
            return None
        with contextlib.suppress(OSError):
            return os.pidfd_open(owner.pid)
        return None

    # ---- without an engine core: main thread

    def run(self, busy_loop: Callable[[], None]) -> None:
        """Run the host's busy loop, under one engine core after the other. Returns or raises only at the end."""
        self.answers.note_calls(self._proc)
        while True:
            try:
                busy_loop()
            except RuntimeError as error:
                if str(error) != CANCELLED or self._died_at is None:
                    raise
            if self._died_at is None:
                return
            self._await_adoption()

    def _await_adoption(self) -> None:
        with contextlib.closing(self._listen()) as listener:
            self._drain()
            self._flush_outputs()
            while True:
                listener.settimeout(None)
                connection, _ = listener.accept()
                link = Connection(connection.detach())
                if self._adopted_over(link):
                    return
                link.close()

    def _listen(self) -> socket.socket:
        path = adoption_path(self._runtime_dir, os.getpid())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(path)
            listener.listen()
        except OSError as error:
            listener.close()
            logger.error("rank %d ends: it cannot wait for an engine core: %s", self._proc.rank, error)
            raise SystemExit(0) from None
        return listener

    def _drain(self) -> None:
        """Carry out all calls that the dead engine core has left; every rank finds the same ones.

        A rank that left out what a peer has begun would keep the peer in a collective for ever.
        """
        queue = self._proc.rpc_broadcast_mq
        queue.shutting_down = False
        while _has_unread(queue):
            self._proc._execute_worker_rpc(queue.dequeue(timeout=DRAIN_S))

    def _flush_outputs(self) -> None:
        """Wait until every output of a step has been computed, and dropped."""
        if self._proc.use_async_scheduling:
            last = _LastOutput()
            self._proc.async_output_queue.put(last)
            if not last.reached.wait(FLUSH_S):
                raise PeerSilent("the outputs of the last steps were not computed in time")

    def _adopted_over(self, link: Connection) -> bool:
        """Take the engine core at the other end of `link` for one's own; return False where that cannot be."""
        try:
            if not link.poll(FLUSH_S):
                return False
            order = decode_adopt(link.recv_bytes(MAX_ADOPTION_BYTES))
        except (EOFError, OSError, msgspec.DecodeError):
            return False
        proc = self._proc
        try:
            if order.configuration != self._configuration:
                raise PeerSilent("the engine core has another configuration than the workers")
            self._serve(order)
            queue = MessageQueue.create_from_handle(to_handle(order.queue), proc.worker.worker.rank)
            replies = MessageQueue(1, 1)
            answer = Adopted(proc.rank, of_handle(replies.export_handle()))
        except Exception as error:
            logger.exception("rank %d cannot be adopted", proc.rank)
            answer = Adopted(proc.rank, refusal=account_of(error).message)
        try:
            link.send_bytes(encode(answer))
            if answer.replies is None:
                return False
            deadline = time.monotonic() + order.timeout_s
            wait_until_ready(queue, deadline, "the engine core does not open the queue of calls")
            wait_until_ready(replies, deadline, "the engine core does not open the queue of replies")
        except (OSError, PeerSilent) as error:
            logger.warning("rank %d waits on: %s", proc.rank, error)
            return False
        self._change_to(link, queue, replies)
        return True

    def _change_to(self, link: Connection, queue: Any, replies: Any) -> None:
        proc, old = self._proc, (self._proc.rpc_broadcast_mq, self._old_replies)
        self._died_at, self._old_replies = None, None
        proc.rpc_broadcast_mq, proc.worker_response_mq = queue, replies
        for each in old:
            if each is not None:
                retire(each)
        self.answers.answer_calls(proc)
        self.watch(link)
        with contextlib.suppress(OSError):
            os.unlink(adoption_path(self._runtime_dir, os.getpid()))
        logger.warning("rank %d (pid %d) serves another engine core", proc.rank, os.getpid())


class _LastOutput:
    """Stands for an output in the host's queue of outputs, and tells that all outputs before have gone."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def get_output(self) -> None:
        self.reached.set()


class _Descriptor:
    def __init__(self, number: int) -> None:
        self._number = number

    def close(self) -> None:
        os.close(self._number)


def _has_unread(queue: Any) -> bool:
    with queue.buffer.get_metadata(queue.current_idx) as flags:
        return bool(flags[0]) and not flags[queue.local_reader_rank + 1]
