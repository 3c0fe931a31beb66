"""The parent of standbys is started once, started again when lost, and given up after some losses in a row."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.worker_pool.standby_parent import MAX_LOSSES, StandbyParent
from holdfast.hosts.vllm.process.forking import READY


class Process:
    killed = False

    def kill(self) -> None:
        self.killed = True

    def join(self, seconds: float) -> None:
        pass


class Started:
    """The started parents: their processes and their ends of the connection."""

    def __init__(self) -> None:
        self.processes: list[Process] = []
        self.ends: list[socket.socket] = []

    def start(self, requests: socket.socket) -> Process:
        self.processes.append(Process())
        self.ends.append(requests.dup())
        return self.processes[-1]


def test_standbys_can_be_forked_once_the_parent_says_so() -> None:
    started = Started()
    parent = StandbyParent(started.start)
    assert [parent.prepare(), parent.prepare()] == [False, False]
    assert (len(started.processes), parent.server) == (1, None)
    started.ends[0].send(READY)
    assert parent.prepare()
    assert parent.server is not None
    parent.close()
    assert started.processes[0].killed


def test_a_lost_parent_is_started_again_and_given_up_after_some_losses_in_a_row() -> None:
    started = Started()
    parent = StandbyParent(started.start)
    for count in range(1, MAX_LOSSES + 1):
        assert not parent.prepare()
        assert len(started.processes) == count
        started.ends[-1].close()
        assert parent.prepare() == (count == MAX_LOSSES)
    assert (parent.is_given_up, parent.server) == (True, None)
    assert parent.prepare(), "standbys are new interpreters now"


def test_a_standby_that_became_ready_forgets_earlier_losses() -> None:
    parent = StandbyParent(Started().start)
    for _ in range(2 * MAX_LOSSES):
        parent.note_failure()
        parent.note_success()
    assert not parent.is_given_up


def test_a_parent_that_cannot_be_started_is_lost() -> None:
    def refuse(requests: socket.socket) -> Process:
        raise OSError("no process")

    parent = StandbyParent(refuse)
    while not parent.prepare():
        pass
    assert parent.is_given_up
