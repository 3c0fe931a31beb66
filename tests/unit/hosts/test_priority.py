"""Background processes sleep beside busy processes, can be hurried, and never keep a policy for good."""

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

from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import bootstrapped

WAIT_S = 30.0  # other tests use both processors meanwhile
SOURCES = str(Path(__file__).parents[3] / "src")
NO_PRIVILEGE = ("setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice")


def policy_of(pid: int) -> int:
    return os.sched_getscheduler(pid)


def wait_until_hurried(pipe: Connection) -> None:
    while signal.getitimer(signal.ITIMER_PROF) != (0.0, 0.0):
        time.sleep(0.01)
    pipe.send_bytes(b"hurried")


def start_in_background() -> tuple[multiprocessing.Process, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with bootstrapped(context, background=True):
        process = context.Process(target=wait_until_hurried, args=(theirs,), daemon=True)
        process.start()
    return process, ours


def wait_for_policy(pid: int, policy: int) -> None:
    until = time.monotonic() + WAIT_S
    while policy_of(pid) != policy:
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_is_hurried(process: multiprocessing.Process, pipe: Connection) -> None:
    assert pipe.poll(WAIT_S)
    assert pipe.recv_bytes() == b"hurried"
    assert policy_of(process.pid) == os.SCHED_OTHER
    process.join(WAIT_S)
    assert process.exitcode == 0


@pytest.mark.skipif(not priority.idle_can_be_left(), reason="needs the privilege to leave the lowest policy")
def test_a_background_process_has_the_lowest_policy_until_hurried() -> None:
    process, pipe = start_in_background()
    wait_for_policy(process.pid, os.SCHED_IDLE)
    priority.hurry(process.pid)
    assert_is_hurried(process, pipe)


def test_a_process_that_is_hurried_before_it_runs_never_waits_for_idle_processors() -> None:
    process, pipe = start_in_background()
    priority.hurry(process.pid)
    assert_is_hurried(process, pipe)


def test_the_process_that_starts_another_keeps_its_own_signals() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with bootstrapped(multiprocessing.get_context("spawn"), background=True):
        pass
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def test_without_the_privilege_the_lowest_policy_is_not_taken_and_hurry_still_works() -> None:
    try:
        subprocess.run([*NO_PRIVILEGE, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process cannot give up a privilege")
    program = (
        "import os, signal\n"
        "from holdfast.hosts.vllm.process import priority\n"
        "priority.begin()\n"
        "assert not priority.idle_can_be_left()\n"
        "assert os.sched_getscheduler(0) == os.SCHED_OTHER\n"
        "priority.hurry(os.getpid())\n"
        "assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCES}
    told = subprocess.run([*NO_PRIVILEGE, sys.executable, "-c", program], timeout=60, env=environment, check=False)
    assert told.returncode == 0


def test_a_check_that_is_due_at_hurry_raises_nothing() -> None:
    program = (
        "import signal\n"
        "from holdfast.hosts.vllm.process import priority\n"
        "priority.begin()\n"
        "both = {priority.HURRY, signal.SIGPROF}\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, both)\n"
        "for one in both:\n"
        "    signal.raise_signal(one)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, both)\n"
        "assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)\n"
    )
    run = [sys.executable, "-c", program]
    told = subprocess.run(run, timeout=60, env={**os.environ, "PYTHONPATH": SOURCES}, check=False, capture_output=True)
    assert (told.returncode, told.stderr) == (0, b"")


def test_an_ordinary_process_survives_hurry() -> None:
    with subprocess.Popen(["sleep", "30"]) as process:
        priority.hurry(process.pid)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.kill()


def test_hurry_ignores_a_dead_process() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        priority.hurry(process.pid)  # raises nothing
        assert process.returncode == 0
