"""The watch of processes, in real time: records in real shared memory, and processes that are really stopped."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Observation, Stall
from holdfast.progress import ProgressWriter
from holdfast.progress.record import RECORD_BYTES
from holdfast.progress.writer import record_path
from holdfast.sentinel.stall_watch import PERIOD_S, ProgressWatch

WAIT_S = 30.0


class Rank:
    """A process that does nothing, and a record that says what the test wants it to."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.memory = folder / f"memory-{self.process.pid}"
        self._bytes = bytearray(RECORD_BYTES)
        self.writer = ProgressWriter(self._bytes)
        self.publish()
        record_path(str(folder), self.process.pid).symlink_to(self.memory)

    @property
    def pid(self) -> int:
        return self.process.pid

    def publish(self) -> None:
        with self.memory.open("r+b" if self.memory.exists() else "wb") as file:
            file.write(self._bytes)

    def begin(self) -> None:
        self.writer.begin(Phase.FORWARD, 100, 8, 8)
        self.publish()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@pytest.fixture
def make_rank(tmp_path: Path) -> Iterator[Callable[[], Rank]]:
    made: list[Rank] = []

    def make() -> Rank:
        made.append(Rank(tmp_path))
        return made[-1]

    yield make
    for rank in made:
        rank.close()


def first_stall(watch: ProgressWatch, pids: Mapping[int, int]) -> Stall:
    """Observation as often as a sentinel does, until a stall is seen."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if stalls := watch.observe(time.monotonic(), pids):
            [stall] = stalls
            return stall
        time.sleep(PERIOD_S)
    raise AssertionError("no stall is seen")


class Looks:
    """What a watch sees of every process, by rank, and by negated process id of a peer."""

    def __init__(self, watch: ProgressWatch, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[int, Observation] = {}
        monkeypatch.setattr(watch.detector, "observe", self._look)

    def _look(self, now: float, due_s: float, looks: Mapping[int, Observation]) -> list[Stall]:
        self.seen = dict(looks)
        return []


def test_a_stopped_process_is_certainly_the_one_that_stalls(tmp_path: Path, make_rank: Callable[[], Rank]) -> None:
    ranks = [make_rank(), make_rank()]
    ranks[1].stop()
    stall = first_stall(ProgressWatch(str(tmp_path)), {0: ranks[0].pid, 1: ranks[1].pid})
    assert (stall.rank, stall.pid, stall.is_certain) == (1, ranks[1].pid, True)


def test_a_process_without_a_record_is_still_seen_to_be_stopped(tmp_path: Path, make_rank: Callable[[], Rank]) -> None:
    rank = make_rank()
    record_path(str(tmp_path), rank.pid).unlink()
    rank.stop()
    assert first_stall(ProgressWatch(str(tmp_path)), {0: rank.pid}).is_certain


def test_the_call_that_a_record_says_is_running_is_seen(
    tmp_path: Path, make_rank: Callable[[], Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = make_rank()
    watch = ProgressWatch(str(tmp_path))
    looks = Looks(watch, monkeypatch)
    watch.observe(time.monotonic(), {0: rank.pid})
    assert looks.seen[0].running == ()
    rank.begin()
    watch.observe(time.monotonic(), {0: rank.pid})
    [call] = looks.seen[0].running
    assert (call.phase, call.step, call.shape.tokens) == (Phase.FORWARD, 100, 8)


@pytest.mark.parametrize("with_peers", [True, False])
def test_every_other_process_with_a_record_is_looked_at_as_a_peer_in_lockstep(
    tmp_path: Path, make_rank: Callable[[], Rank], monkeypatch: pytest.MonkeyPatch, with_peers: bool
) -> None:
    rank, peer = make_rank(), make_rank()
    peer.begin()
    watch = ProgressWatch(str(tmp_path), with_peers=with_peers)
    looks = Looks(watch, monkeypatch)
    watch.observe(time.monotonic(), {0: rank.pid})
    assert {number: look.is_peer for number, look in looks.seen.items()} == {
        0: False,
        **({-peer.pid: True} if with_peers else {}),
    }
    assert len(looks.seen.get(-peer.pid, looks.seen[0]).running) == with_peers


# ---- records that cannot be read


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_record_is_read_and_peers_are_known_once_a_descriptor_is_free_again(
    tmp_path: Path, make_rank: Callable[[], Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, peer = make_rank(), make_rank()
    rank.begin()
    knows, begins = ProgressWatch(str(tmp_path), with_peers=True), ProgressWatch(str(tmp_path))
    looks, later = Looks(knows, monkeypatch), Looks(begins, monkeypatch)
    knows.observe(time.monotonic(), {0: peer.pid})
    with no_descriptor_left():
        knows.observe(time.monotonic(), {0: peer.pid})
        begins.observe(time.monotonic(), {0: rank.pid})
    assert -rank.pid in looks.seen, "an unknown peer is not gone"
    assert later.seen[0].running == ()
    begins.observe(time.monotonic(), {0: rank.pid})
    assert len(later.seen[0].running) == 1


@pytest.mark.parametrize("content", [b"", b"\xff" * RECORD_BYTES])
def test_a_record_that_makes_no_sense_costs_the_others_nothing(
    tmp_path: Path, make_rank: Callable[[], Rank], content: bytes
) -> None:
    ranks = [make_rank(), make_rank()]
    ranks[0].memory.write_bytes(content)
    ranks[1].stop()
    assert first_stall(ProgressWatch(str(tmp_path)), {0: ranks[0].pid, 1: ranks[1].pid}).rank == 1
