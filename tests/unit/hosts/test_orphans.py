"""Orphans become children of the owner, and are reaped or ended there; children of its own are left alone."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.owner import orphans as module
from holdfast.hosts.vllm.owner.orphans import Orphans
from holdfast.hosts.vllm.process.members import member_pids

WAIT_S = 10.0


@pytest.fixture
def orphans(tmp_path: Path) -> Iterator[Orphans]:
    made = Orphans(str(tmp_path))
    made.start()
    yield made
    made.close()
    ctypes.CDLL(None).prctl(module._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def orphan(folder: Path) -> int:
    """Return a process whose parent has ended, recorded as a member."""
    parent = subprocess.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], capture_output=True, check=True)
    pid = int(parent.stdout)
    (folder / f"member-{pid}").touch()
    return pid


def test_an_orphan_that_has_ended_leaves_no_zombie_and_no_record(orphans: Orphans, tmp_path: Path) -> None:
    pid = orphan(tmp_path)
    assert psutil.Process(pid).ppid() == os.getpid()
    os.kill(pid, 9)
    deadline = time.monotonic() + WAIT_S
    while psutil.pid_exists(pid):
        orphans.reap()
        assert time.monotonic() < deadline
    assert member_pids(str(tmp_path)) == []


def test_living_orphans_end_with_the_instance(orphans: Orphans, tmp_path: Path) -> None:
    pid = orphan(tmp_path)
    orphans.reap()
    assert psutil.pid_exists(pid)
    orphans.close()
    assert not psutil.pid_exists(pid)


def test_a_child_of_the_owner_keeps_its_exit_code(orphans: Orphans, tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=os._exit, args=(7,))
    child.start()
    (tmp_path / f"member-{child.pid}").touch()
    multiprocessing.connection.wait([child.sentinel], WAIT_S)
    orphans.close()
    child.join(WAIT_S)
    assert child.exitcode == 7
