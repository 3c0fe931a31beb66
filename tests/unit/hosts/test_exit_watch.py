"""The death of a worker process is noticed and described."""

import multiprocessing
import os
import queue
import signal

import pytest

from holdfast.hosts.vllm.engine.worker_pool import exit_watch
from holdfast.hosts.vllm.engine.worker_pool.exit_watch import WorkerExitWatch
from holdfast.hosts.vllm.process.lifecycle import describe_exit

WAIT_S = 10.0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "it is ending"),
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
    ],
)
def test_the_end_of_a_process_is_described(code, words):
    assert describe_exit(code) == words


def test_the_death_of_a_process_is_reported_once_with_rank_and_cause():
    told = queue.Queue()
    process = multiprocessing.get_context("spawn").Process(target=signal.pause, daemon=True)
    process.start()
    watch = WorkerExitWatch(
        {3: process}, lambda rank, pid, how, exit_code: told.put((rank, pid, how.partition(",")[0], exit_code))
    )
    watch.start()
    os.kill(process.pid, signal.SIGKILL)
    assert told.get(timeout=WAIT_S) == (3, process.pid, "killed by SIGKILL", -signal.SIGKILL)
    assert told.empty()


def test_a_death_that_cannot_be_told_or_explained_is_told_at_a_later_look(monkeypatch):
    told = queue.Queue()
    refusals = [OSError(24, "Too many open files"), ValueError("not to be decoded")]

    def tell(rank, pid, how, exit_code):
        if refusals:
            raise refusals.pop()
        told.put((rank, pid, how, exit_code))

    def unexplained(*_):
        raise UnicodeDecodeError("utf-8", b"\xc3", 0, 1, "cut")

    monkeypatch.setattr(exit_watch, "explain_exit", unexplained)
    process = multiprocessing.get_context("spawn").Process(target=signal.pause, daemon=True)
    process.start()
    watch = WorkerExitWatch({0: process}, tell)
    watch.start()
    os.kill(process.pid, signal.SIGKILL)
    rank, pid, how, exit_code = told.get(timeout=WAIT_S)
    assert (rank, pid, exit_code) == (0, process.pid, -signal.SIGKILL)
    assert how.startswith("how is unknown")
