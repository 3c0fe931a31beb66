"""What a process was at between two looks, of processes that really compute, wait, or have a child compute."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from holdfast.progress import look_at
from holdfast.progress.activity import Activity, Doing

COMPUTES = "while True: pass"
WAITS = "import threading; threading.Event().wait(60)"
WAITS_FOR_A_COMPILER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{COMPUTES}'])"
needs_children = pytest.mark.skipif(
    not Path("/proc/self/task").exists() or not list(Path("/proc/self/task").glob("*/children")),
    reason="this system does not say which children a process has",
)


@contextmanager
def process(code: str) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as running:
        try:
            yield running.pid
        finally:
            os.killpg(running.pid, signal.SIGKILL)


def looks(pid: int, *, closer: bool = True, count: int = 100) -> Iterator[Doing]:
    """What it did in each tenth of a second."""
    activity, at = Activity(pid, with_children=True), time.monotonic()
    for _ in range(count):
        time.sleep(0.1)
        at, before = time.monotonic(), at
        yield activity.look(look_at(pid), at - before, closer=closer)


@pytest.mark.parametrize("code", [COMPUTES, pytest.param(WAITS_FOR_A_COMPILER, marks=needs_children)])
def test_a_process_computes_that_does_or_whose_child_does(code: str) -> None:
    with process(code) as pid:
        assert any(doing.is_computing for doing in looks(pid))


def test_a_process_that_waits_does_not_compute() -> None:
    with process(WAITS) as pid:
        assert any(seen == (Doing(), Doing()) for seen in itertools.pairwise(looks(pid)))


def test_who_is_not_looked_at_closer_is_not_known_to_compute() -> None:
    with process(COMPUTES) as pid:
        assert set(looks(pid, closer=False, count=5)) == {Doing()}
