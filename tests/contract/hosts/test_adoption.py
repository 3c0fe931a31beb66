"""Workers without an engine core: real processes and the host's own queues and busy loop, without a model."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool import adoption
from holdfast.hosts.vllm.engine.worker_pool.executor import WorkerPoolExecutor
from holdfast.hosts.vllm.process.members import record_owner
from holdfast.hosts.vllm.protocol import ENDS, Adopt, of_handle
from holdfast.hosts.vllm.worker.orphan import EngineLink
from holdfast.hosts.vllm.worker.start_answers import StartAnswers

pytestmark = pytest.mark.host

FORK = multiprocessing.get_context("fork")
BOUND_S = 20.0
WAIT_S = 10.0
OK = WorkerProc.ResponseStatus.SUCCESS


class Echo:
    """The host's worker, as far as the calls of these tests go."""

    def __init__(self, rank: int) -> None:
        self.worker = SimpleNamespace(rank=rank)
        self.made = 0
        self.served: list[str] = []

    def echo(self, text: str) -> str:
        return text

    def slow(self, seconds: float) -> None:
        time.sleep(seconds)

    def make(self, size: int) -> int:
        self.made += 1
        return size * 10

    def counts(self) -> tuple[int, int]:
        return self.made, len(self.served)


def worker_main(rank: int, folder: str, bound_s: float, pipes: tuple[Connection, ...], handle: Any) -> None:
    death, ready, *inherited = pipes
    for pipe in inherited:
        pipe.close()
    proc = WorkerProc.__new__(WorkerProc)
    proc.rank, proc.worker, proc.use_async_scheduling = rank, Echo(rank), False  # type: ignore[assignment]
    proc.rpc_broadcast_mq = MessageQueue.create_from_handle(handle, rank)
    proc.worker_response_mq = MessageQueue(1, 1)
    link = EngineLink(proc, threading.Event(), folder, bound_s, lambda order: proc.worker.served.append(order.sentinel))
    proc.worker.holdfast_outlive = link.outlive  # type: ignore[attr-defined]
    link.watch(death)
    ready.send(proc.worker_response_mq.export_handle())
    proc.rpc_broadcast_mq.wait_until_ready()
    proc.worker_response_mq.wait_until_ready()
    with contextlib.suppress(SystemExit):
        link.run(proc.worker_busy_loop)


class Engine:
    """What an engine core is to its workers: a queue of calls, their replies, and a pipe to each of them."""

    def __init__(self, queue: Any, replies: list[Any], pipes: list[Any]) -> None:
        self.queue, self.replies, self.pipes = queue, replies, pipes

    def send(self, method: str, *args: Any) -> None:
        self.queue.enqueue((method, args, {}, None), timeout=WAIT_S)

    def call(self, method: str, *args: Any) -> list[Any]:
        self.send(method, *args)
        return [replies.dequeue(timeout=WAIT_S) for replies in self.replies]

    def die(self) -> None:
        for pipe in self.pipes:
            pipe.close()


class Bench:
    def __init__(self, ranks: int, bound_s: float, owner: int | None) -> None:
        self.folder = tempfile.mkdtemp(prefix="holdfast-test-")
        record_owner(self.folder)
        if owner is not None:
            self.name_owner(owner)
        queue, deaths, readies = MessageQueue(ranks, ranks), [], []
        self.processes = []
        for rank in range(ranks):
            death, death_writer = FORK.Pipe(duplex=False)
            ready, ready_writer = FORK.Pipe(duplex=False)
            pipes = (death, ready_writer, death_writer, ready, *deaths, *readies)
            about = (rank, self.folder, bound_s, pipes, queue.export_handle())
            self.processes.append(FORK.Process(target=worker_main, args=about, daemon=True))
            self.processes[-1].start()
            death.close()
            ready_writer.close()
            deaths.append(death_writer)
            readies.append(ready)
        replies = [MessageQueue.create_from_handle(ready.recv(), 0) for ready in readies]
        queue.wait_until_ready()
        for each in replies:
            each.wait_until_ready()
        self.engine = Engine(queue, replies, deaths)

    def name_owner(self, pid: int) -> None:
        from holdfast.hosts.vllm.process import members

        record = Path(self.folder) / members._OWNER
        record.write_bytes(members.msgspec.json.encode(members.Identity.of(pid)))

    def adopt(self, configuration: str = "c", timeout_s: float = WAIT_S) -> Engine:
        """Put an engine core in the place of the dead one."""
        queue = MessageQueue(len(self.processes), len(self.processes))
        order = Adopt(0, configuration, of_handle(queue.export_handle()), "there", 1, timeout_s)
        pids = [p.pid for p in reversed(self.processes) if p.pid is not None]  # in any order
        workers = adoption._adopt(pids, self.folder, order, queue)
        replies = [worker.worker_response_mq for worker in workers]
        return Engine(queue, replies, [worker.death_writer for worker in workers])

    def ended(self) -> bool:
        deadline = time.monotonic() + WAIT_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return all(process.exitcode is not None for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join(WAIT_S)
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def bench(ranks: int = 1, bound_s: float = BOUND_S, owner: int | None = None) -> Iterator[Bench]:
    made = Bench(ranks, bound_s, owner)
    try:
        yield made
    finally:
        made.close()


def test_workers_serve_one_engine_core_after_the_other() -> None:
    with bench(ranks=2) as made:
        engine = made.engine
        engine.call("holdfast_outlive", "c")
        for _ in range(3):
            engine.send("echo", "a step that nobody waits for")
            engine.die()
            engine = made.adopt()
            engine.call("holdfast_outlive", "c")
            assert engine.call("echo", "b") == [(OK, "b")] * 2
        assert engine.call("counts") == [(OK, (0, 3))] * 2
        assert list(Path(made.folder).glob("adopt-*")) == []


def test_calls_that_stand_in_the_queue_are_carried_out_by_every_rank() -> None:
    with bench(ranks=2) as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.send("slow", 0.2)
        made.engine.send("make", 1)
        made.engine.send("make", 1)
        made.engine.die()
        engine = made.adopt()
        engine.call("holdfast_outlive", "c")
        assert engine.call("counts") == [(OK, (2, 1))] * 2


def test_the_start_of_the_next_engine_core_is_answered_and_not_carried_out() -> None:
    with bench() as made:
        assert made.engine.call("make", 3) == [(OK, 30)]
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        engine = made.adopt()
        assert engine.call("make", 3) == [(OK, 30)]
        [(status, why)] = engine.call("make", 4)
        assert status is not OK
        assert "not made ready by this call of make" in why
        engine.call("holdfast_outlive", "c")
        assert engine.call("counts") == [(OK, (1, 1))]
        assert engine.call("make", 4) == [(OK, 40)]


def test_an_engine_core_that_ends_in_order_ends_its_workers() -> None:
    with bench() as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.pipes[0].send_bytes(ENDS)
        assert made.ended()


def test_a_worker_that_is_not_ready_ends_with_its_engine_core() -> None:
    with bench() as made:
        made.engine.die()
        assert made.ended()


def test_a_worker_waits_for_a_bounded_time() -> None:
    with bench(bound_s=0.1) as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        assert made.ended()


def test_a_worker_ends_with_the_owner_of_the_engine_cores() -> None:
    owner = subprocess.Popen(["sleep", "60"])
    with bench(owner=owner.pid) as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        owner.kill()
        owner.wait()
        assert made.ended()


def test_sigterm_ends_a_worker_that_waits() -> None:
    with bench() as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        [process] = made.processes
        os.kill(process.pid or 0, signal.SIGTERM)
        assert made.ended()


def test_an_engine_core_of_another_configuration_is_refused() -> None:
    with bench() as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        with pytest.raises(RecoveryFailed, match="another configuration"):
            made.adopt("d")
        assert made.adopt().call("holdfast_outlive", "c") == [(OK, None)]


def test_an_engine_core_that_dies_while_it_takes_over_leaves_the_workers_waiting() -> None:
    with bench() as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        made.adopt().die()  # before a word of the workers' future
        assert made.adopt().call("holdfast_outlive", "c") == [(OK, None)]


def test_a_dead_worker_is_not_waited_for() -> None:
    with bench(ranks=2) as made:
        made.engine.call("holdfast_outlive", "c")
        made.engine.die()
        made.processes[1].kill()
        made.processes[1].join(WAIT_S)
        began = time.monotonic()
        with pytest.raises(RecoveryFailed, match="has ended"):
            made.adopt()
        assert time.monotonic() - began < WAIT_S / 2


def test_answers_are_those_of_equal_calls() -> None:
    answers = StartAnswers()
    answers.note("make", (1,), {"of": 2}, "one")
    answers.note("list_loras", (), {}, {1})
    assert answers.answer("make", (1,), {"of": 2}) == "one"
    for method, args in (("make", (2,)), ("list_loras", ()), ("other", ())):
        with pytest.raises(RecoveryFailed, match=method):
            answers.answer(method, args, {})


@pytest.mark.parametrize("may_outlive", [False, True])
def test_only_workers_that_may_outlive_an_engine_core_hear_that_the_engine_core_ends_in_order(
    monkeypatch: pytest.MonkeyPatch, may_outlive: bool
) -> None:
    """Other workers have the host's watch: a word would end the watch, and the worker would outlive its engine core."""
    monkeypatch.setattr(MultiprocExecutor, "shutdown", lambda executor: None)
    reader, writer = multiprocessing.Pipe(duplex=False)
    executor = object.__new__(WorkerPoolExecutor)
    executor.workers = [SimpleNamespace(death_writer=writer)]
    executor.standbys = SimpleNamespace(close=lambda: None)
    executor._may_be_outlived = may_outlive
    executor.shutdown()
    assert reader.poll() is may_outlive
