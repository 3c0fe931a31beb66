"""A failed process ends in bounded time, and so do the workers of a dead engine core."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.process import lifecycle
from holdfast.progress.processes import start_ticks, ticks_now

PROGRAM = """
import threading
from holdfast.hosts.vllm.process import lifecycle
from holdfast.hosts.vllm.process.lifecycle import exit_within
from holdfast.progress.processes import start_ticks, ticks_now
exit_within({seconds})
{ends}
"""


def exit_code(seconds: float, ends: str) -> int:
    program = PROGRAM.format(seconds=seconds, ends=ends)
    return subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode


def test_a_process_that_never_ends_by_itself_is_ended() -> None:
    assert exit_code(0.05, "threading.Event().wait()") == 1


def test_a_process_that_ends_in_time_keeps_its_exit_code() -> None:
    assert exit_code(3600.0, "raise SystemExit(3)") == 3


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_clock_that_was_set_back_keeps_no_worker_of_a_dead_engine_core_alive(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    """By the wall clock the worker would be younger than the loss."""
    monkeypatch.setattr(lifecycle, "LINGER_S", 0.1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 10.0)
    lifecycle.end_processes([sleeper.pid], ticks_now())
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_process_that_is_younger_than_the_loss_has_reused_the_id_and_lives(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(lifecycle, "LINGER_S", 0.1)
    started = start_ticks(sleeper.pid)
    assert started is not None
    lifecycle.end_processes([sleeper.pid], started - 1)
    assert sleeper.poll() is None


def test_a_process_that_cannot_be_identified_is_waited_for_and_not_killed(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "LINGER_S", 0.1)
    monkeypatch.setattr(lifecycle, "start_ticks", lambda pid: None)
    lifecycle.end_processes([sleeper.pid], ticks_now())
    assert sleeper.poll() is None
    assert "cannot be identified" in caplog.text


def test_without_a_list_of_descendants_the_process_itself_is_killed(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    def refuse(pid: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(lifecycle.psutil, "Process", refuse)
    lifecycle.kill_tree(sleeper.pid)
    assert sleeper.wait(10) == -signal.SIGKILL


def test_an_exit_is_told_also_when_its_cause_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> dict[str, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(lifecycle, "oom_kills", unreadable)
    assert lifecycle.explain_exit(-signal.SIGKILL, {}) == "killed by SIGKILL"
