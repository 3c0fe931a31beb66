"""A fork server: children of the process that asks, with its environment and descriptors; no server, no process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.process import forking, priority
from holdfast.hosts.vllm.process.bootstrap import Bootstrap
from holdfast.hosts.vllm.process.forking import CannotFork, ForkedProcess, ForkServer

WAIT_S = 30.0
SOURCES = str(Path(__file__).parents[3] / "src")


def tell(pipe: Connection) -> None:
    """Tell what a process finds: parent, environment, descriptors."""
    pipe.send((os.getppid(), os.environ.get("ASKED_WITH"), sorted(map(int, os.listdir("/proc/self/fd")))))


def end_with(code: int) -> None:
    raise SystemExit(code)


def wait_for_ever() -> None:
    signal.pause()


SERVE = (
    "import socket, sys\n"
    "from holdfast.hosts.vllm.process.forking import serve_forks\n"
    "serve_forks(socket.socket(fileno=int(sys.argv[1])))\n"
)


@pytest.fixture(scope="module")
def server():
    """A server without the threads of pytest."""
    ours, theirs = forking.make_ends()
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    with theirs:
        command = [sys.executable, "-c", SERVE, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
    made = ForkServer(ours)
    yield made
    made.close()
    assert process.wait(WAIT_S) == 0


def run(server: ForkServer, target, *args) -> ForkedProcess:
    process = ForkedProcess(server, target=target, args=args, daemon=True)
    process.start()
    return process


def test_a_forked_process_is_a_child_with_the_environment_of_the_request(server, monkeypatch) -> None:
    monkeypatch.setenv("ASKED_WITH", "this")
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = run(server, Bootstrap(tell, background=False), theirs)
    assert ours.poll(WAIT_S)
    parent, told, descriptors = ours.recv()
    process.join(WAIT_S)
    assert (parent, told, process.exitcode) == (os.getpid(), "this", 0)
    assert len(descriptors) <= 9, f"descriptors of this process were inherited: {descriptors}"


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_that_of_the_process(server, code) -> None:
    process = run(server, end_with, code)
    process.join(WAIT_S)
    assert process.exitcode == code


def test_a_kill_is_noticed_at_once(server) -> None:
    process = run(server, wait_for_ever)
    process.kill()
    assert multiprocessing.connection.wait([process.sentinel], WAIT_S)
    process.join(WAIT_S)
    assert process.exitcode == -signal.SIGKILL


def test_a_server_that_is_gone_forks_nothing() -> None:
    ours, theirs = forking.make_ends()
    theirs.close()
    lost = ForkServer(ours)
    for _ in range(2):
        with pytest.raises(CannotFork):
            run(lost, wait_for_ever)
    assert lost.is_lost


def test_a_server_that_does_not_answer_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(forking, "ANSWER_S", 0.05)
    ours, theirs = forking.make_ends()
    with theirs, pytest.raises(CannotFork, match="does not answer"):
        run(ForkServer(ours), wait_for_ever)


def test_a_process_that_is_no_child_is_refused() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        stranger = int(shell.stdout.readline())
        with pytest.raises(CannotFork, match="does not give"):
            forking._checked_child(stranger)
        shell.wait(WAIT_S)  # for the stranger, which was killed


def test_threads_that_are_bound_as_a_library_is_loaded_need_a_new_interpreter(server, monkeypatch) -> None:
    monkeypatch.setenv("KMP_AFFINITY", "granularity=fine")
    with pytest.raises(CannotFork, match="KMP_AFFINITY"):
        run(server, wait_for_ever)
    assert not server.is_lost


def test_a_process_with_threads_keeps_no_server(monkeypatch) -> None:
    monkeypatch.setattr(forking.threading, "active_count", lambda: 2)
    forking.keep_fork_server()
    assert forking.first_fork_server() is None


BUSY = "import time\nwhile True: pass"
PACED = (
    "import os, signal, sys, time\n"
    "from holdfast.hosts.vllm.process import priority\n"
    "priority.begin(paced=True)\n"
    "began, used, done = time.monotonic(), time.process_time(), 0\n"
    "while time.process_time() - used < float(sys.argv[1]): done += 1\n"
    "print(os.sched_getscheduler(0) == os.SCHED_OTHER, (time.process_time() - used) / (time.monotonic() - began))\n"
    "priority.end()\n"
)


def paced(seconds: str, environment: dict[str, str]) -> tuple[bool, float]:
    said = subprocess.run(
        [sys.executable, "-c", PACED, seconds], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    policy, share = said.stdout.split()
    return policy == "True", float(share)


def test_beside_full_load_a_paced_process_gets_its_share_and_no_more() -> None:
    """At the lowest policy it would get nothing; 0.05 s of processor time take more than half a second."""
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(1 + (os.cpu_count() or 1))]
    try:
        is_ordinary, share = paced("0.05", environment)
    finally:
        for one in load:
            one.kill()
            one.wait()
    assert is_ordinary
    assert priority.SHARE / 8 < share < 2 * priority.SHARE


def test_a_paced_process_waits_while_a_recovery_is_under_way_and_can_be_hurried(monkeypatch) -> None:
    priority.share_hold()
    monkeypatch.setattr(priority, "_is_hurried", False)
    priority.hold()
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            monkeypatch.setattr(priority, "_is_hurried", True)

    monkeypatch.setattr(time, "sleep", nap)
    try:
        priority._keep_to_share(False)
        assert len(naps) == 3
    finally:
        priority.release()
    assert not priority.is_held()


def test_a_hold_ends_by_itself(monkeypatch) -> None:
    priority.share_hold()
    priority.hold()
    assert priority.is_held()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + priority.HELD_S + 1)
    assert not priority.is_held()
    priority.release()
