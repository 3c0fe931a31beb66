"""An engine core that takes over the living workers of a dead one: what its executor does in place of starting them."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection
from typing import Any

import msgspec
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.utils.torch_utils import set_torch_threads_for_runtime
from vllm.v1.executor.multiproc_executor import WorkerProcHandle

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText
from holdfast.hosts.vllm.engine.pacing import replace_method
from holdfast.hosts.vllm.process.queues import calls_queue, wait_until_ready
from holdfast.hosts.vllm.process.settings import place_of_files
from holdfast.hosts.vllm.protocol import (
    ENDS,
    MAX_ADOPTION_BYTES,
    Adopt,
    Adopted,
    adoption_path,
    decode_adopted,
    encode,
    of_handle,
    to_handle,
)
from holdfast.hosts.vllm.worker.equal_state import SEED_BITS
from holdfast.sentinel.thread import engine_address

RETRY_S = 0.005


class AdoptedProcess:
    """The part of a process of `multiprocessing` that an executor needs, of a process that another one started.

    Attributes:
        sentinel: ready for reading once the process has ended.
        exitcode: always None, since only the parent of a process is told.
    """

    exitcode: int | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.name = f"VllmWorker-{pid}"
        self.sentinel = os.pidfd_open(pid)

    def is_alive(self) -> bool:
        return not self._ends_within(0.0)

    def join(self, timeout: float | None = None) -> None:
        self._ends_within(timeout)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _ends_within(self, seconds: float | None) -> bool:
        return bool(select.select([self.sentinel], [], [], seconds)[0])

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.sentinel, number)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.sentinel)


def take_over_workers(executor: Any, pids: Sequence[int], config: HoldfastConfig, configuration: str) -> None:
    """Give an executor the living workers of a dead engine core, with all that the host does beside starting workers.

    Args:
        configuration: fingerprint of the configuration of this engine core.

    Raises:
        RecoveryFailed: a worker has ended, is not ready in time or refuses.
        PeerSilent: a worker does not open the queues.
    """
    executor._finalizer = weakref.finalize(executor, executor.shutdown)
    executor.is_failed, executor.failure_callback = False, None
    executor._get_parallel_sizes()
    if len(pids) != executor.world_size:
        raise RecoveryFailed(PublicText(f"{len(pids)} workers are left, and {executor.world_size} are needed"))
    executor.rpc_broadcast_mq = queue = calls_queue(executor)
    engine_id = executor.parallel_config.data_parallel_index
    order = Adopt(
        engine_id=engine_id,
        configuration=configuration,
        queue=of_handle(queue.export_handle()),
        sentinel=engine_address(place_of_files(config.runtime_dir), engine_id),
        seed=secrets.randbits(SEED_BITS),
        timeout_s=config.containment_timeout_s,
    )
    executor.workers = _adopt(pids, config.runtime_dir, order, queue)
    set_torch_threads_for_runtime()
    executor.start_worker_monitor()
    executor.response_mqs = [worker.worker_response_mq for worker in executor.workers]
    executor.futures_queue = deque()
    executor._post_init_executor()
    executor.output_rank = executor._get_output_rank()


def _adopt(pids: Sequence[int], runtime_dir: str, order: Adopt, queue: Any) -> list[Any]:
    """Have the workers carry out `order`, and return the host's handles of them by rank."""
    deadline = time.monotonic() + order.timeout_s
    asked = [_ask(_process(pid), runtime_dir, order, deadline) for pid in pids]
    found = [_await_answer(process, link, runtime_dir, order, deadline) for process, link in asked]
    found.sort(key=lambda worker: int(worker.rank))
    if [worker.rank for worker in found] != list(range(len(found))):
        raise RecoveryFailed(PublicText(f"the workers are of the ranks {[worker.rank for worker in found]}"))
    wait_until_ready(queue, deadline, "a worker does not open the new queue")
    for worker in found:
        wait_until_ready(worker.worker_response_mq, deadline, f"rank {worker.rank} does not open its reply queue")
    return found


@contextlib.contextmanager
def answering_for_workers(executor: Any) -> Iterator[None]:
    """Answer calls to adopted workers in their place: they have kept the state that the calls set."""
    undo = replace_method(executor, "collective_rpc", lambda *args, **kwargs: [True] * executor.world_size)
    try:
        yield
    finally:
        undo()


def say_end(workers: Sequence[Any]) -> None:
    """Tell workers that this engine core ends in order: they are to end, and wait for no other."""
    for worker in workers:
        with contextlib.suppress(OSError, AttributeError):
            worker.death_writer.send_bytes(ENDS)


def _process(pid: int) -> AdoptedProcess:
    try:
        return AdoptedProcess(pid)
    except OSError as error:
        raise RecoveryFailed(f"worker {pid} has ended: {error}") from error


def _ask(process: AdoptedProcess, runtime_dir: str, order: Adopt, deadline: float) -> tuple[AdoptedProcess, Connection]:
    """Give a worker an order as soon as it listens: it finishes the calls of the dead engine core before."""
    path = adoption_path(runtime_dir, process.pid)
    while process.is_alive():
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            link = Client(path, "AF_UNIX")
            link.send_bytes(encode(order))
            return process, link
        if time.monotonic() > deadline:
            raise RecoveryFailed(PublicText(f"worker {process.pid} did not become ready to be adopted"))
        time.sleep(RETRY_S)
    raise RecoveryFailed(PublicText(f"worker {process.pid} has ended"))


def _await_answer(process: AdoptedProcess, link: Connection, runtime_dir: str, order: Adopt, deadline: float) -> Any:
    """Return the host's handle of a worker once it has answered."""
    while True:
        try:
            if not link.poll(max(0.0, deadline - time.monotonic())):
                raise RecoveryFailed(PublicText(f"worker {process.pid} does not answer"))
            return _handle_of(process, link, decode_adopted(link.recv_bytes(MAX_ADOPTION_BYTES)))
        except msgspec.DecodeError as error:
            raise RecoveryFailed(f"worker {process.pid} does not answer: {error}") from error
        except (EOFError, OSError):  # the worker was about to serve another engine core, which has died since
            link.close()
            _, link = _ask(process, runtime_dir, order, deadline)


def _handle_of(process: AdoptedProcess, link: Connection, answer: Adopted) -> Any:
    if answer.replies is None:
        raise RecoveryFailed(PublicText(f"rank {answer.rank} refuses: {answer.refusal}"))
    process.name = f"VllmWorker-{answer.rank}"
    replies = MessageQueue.create_from_handle(to_handle(answer.replies), 0)
    return WorkerProcHandle(process, answer.rank, replies, [], link)
