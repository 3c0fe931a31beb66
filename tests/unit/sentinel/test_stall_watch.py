"""The watch of the ranks, over records in real shared memory and processes that are really stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Stall
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.progress import ProgressWriter
from holdfast.progress.record import RECORD_BYTES
from holdfast.progress.writer import record_path
from holdfast.sentinel.stall_watch import PERIOD_S, RankWatch

LIMITS = Limits()


class Rank:
    """A process that does nothing, and a record that says what the test wants it to."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.memory = folder / f"memory-{self.process.pid}"
        self._bytes = bytearray(RECORD_BYTES)
        self.writer = ProgressWriter(self._bytes)
        self.publish()
        record_path(str(folder), self.process.pid).symlink_to(self.memory)

    def publish(self) -> None:
        with self.memory.open("r+b" if self.memory.exists() else "wb") as file:
            file.write(self._bytes)

    def work(self, steps: int = 20) -> None:
        for step in range(steps):
            self.writer.begin(Phase.FORWARD, step, 8, 8)
            self.writer.end()
        self.publish()

    def begin(self) -> None:
        self.writer.begin(Phase.FORWARD, 100, 8, 8)
        self.publish()

    def end(self) -> None:
        self.writer.end()
        self.publish()


class Bench:
    """Implements `Accuser`."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.ranks = [Rank(folder) for _ in range(ranks)]
        self.accused: list[Stall] = []
        self.calls: list[str] = []
        self.rebuildable = True
        self.watch = RankWatch(str(folder), self, LIMITS)

    def rank_pids(self) -> Mapping[int, int]:
        return {rank: it.process.pid for rank, it in enumerate(self.ranks)}

    def may_declare_hung(self) -> bool:
        return self.rebuildable

    def has_peers(self) -> bool:
        return len(self.ranks) > 1

    def break_to_find(self, until: float) -> None:
        self.calls.append("break")

    def found(self) -> None:
        self.calls.append("found")

    def declare_hung(self, stall: Stall) -> None:
        self.accused.append(stall)

    def tick_for(self, seconds: float, start: float) -> float:
        """Look as often as a sentinel does, from `start` on; the time after the last look."""
        for _ in range(round(seconds / PERIOD_S)):
            self.watch.tick(start)
            start += PERIOD_S * 1.001
        return start


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        for rank in bench.ranks:
            rank.process.kill()
            rank.process.wait()
            assert rank.process.stdin is not None
            rank.process.stdin.close()


def learned(tmp_path: Path, benches: list[Bench], ranks: int) -> tuple[Bench, float]:
    """Ranks that have worked for a while, and the time now."""
    bench = Bench(tmp_path, ranks)
    benches.append(bench)
    for rank in bench.ranks:
        rank.work()
    return bench, bench.tick_for(PERIOD_S, time.monotonic())


def test_a_rank_alone_is_accused_at_once(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 1)
    bench.ranks[0].begin()
    bench.tick_for(LIMITS.decode_floor_s + 0.5, now)
    assert [s.rank for s in bench.accused] == [0]
    assert bench.calls == []


def test_who_only_waited_leaves_its_step_when_collectives_break_and_is_not_accused(
    tmp_path: Path, benches: list[Bench]
) -> None:
    bench, now = learned(tmp_path, benches, 2)
    for rank in bench.ranks:
        rank.begin()
    while not bench.calls:
        now = bench.tick_for(PERIOD_S, now)
    bench.ranks[0].end()
    bench.tick_for(1, now)
    assert [s.rank for s in bench.accused] == [1]
    assert bench.calls == ["break", "found"]


def test_where_all_come_on_after_the_break_nobody_is_accused(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 2)
    for rank in bench.ranks:
        rank.begin()
    while not bench.calls:
        now = bench.tick_for(PERIOD_S, now)
    for rank in bench.ranks:
        rank.end()
    bench.tick_for(1, now)
    assert bench.accused == []
    assert bench.calls == ["break", "found"]


def test_a_stopped_rank_is_accused_without_breaking_anything_first(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 2)
    for rank in bench.ranks:
        rank.begin()
    os.kill(bench.ranks[1].process.pid, signal.SIGSTOP)
    os.waitpid(bench.ranks[1].process.pid, os.WUNTRACED)
    bench.tick_for(3, now)
    assert [(s.rank, s.is_certain) for s in bench.accused] == [(1, True)]
    assert bench.calls == []


def test_each_process_is_accused_once(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 1)
    bench.ranks[0].begin()
    bench.tick_for(10, now)
    assert len(bench.accused) == 1


def test_where_nothing_could_be_rebuilt_nothing_is_broken(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 2)
    bench.rebuildable = False
    for rank in bench.ranks:
        rank.begin()
    bench.tick_for(10, now)
    assert (bench.accused, bench.calls) == ([], [])


def test_a_rank_without_a_record_is_still_seen_to_be_stopped(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 1)
    record_path(str(tmp_path), bench.ranks[0].process.pid).unlink()
    bench.watch = RankWatch(str(tmp_path), bench, LIMITS)
    os.kill(bench.ranks[0].process.pid, signal.SIGSTOP)
    os.waitpid(bench.ranks[0].process.pid, os.WUNTRACED)
    bench.tick_for(LIMITS.stopped_s + 0.5, now)
    assert [s.is_certain for s in bench.accused] == [True]


def test_whoever_else_keeps_a_record_may_be_waited_for_in_lockstep(tmp_path: Path, benches: list[Bench]) -> None:
    """A peer's first batch of a shape may compile: who waits for it waits as long, and is accused after that."""
    bench, now = learned(tmp_path, benches, 1)
    peer = Bench(tmp_path, 1)
    benches.append(peer)
    bench.watch = RankWatch(str(tmp_path), bench, LIMITS, with_peers=True)
    bench.ranks[0].work()
    now = bench.tick_for(PERIOD_S, now)
    peer.ranks[0].begin()
    bench.ranks[0].begin()
    now = bench.tick_for(LIMITS.decode_floor_s + 1, now)
    assert bench.accused == []
    peer.ranks[0].end()
    bench.tick_for(1, now)
    assert [s.rank for s in bench.accused] == [0]


def test_a_peer_is_never_accused(tmp_path: Path, benches: list[Bench]) -> None:
    bench, now = learned(tmp_path, benches, 1)
    peer = Bench(tmp_path, 1)
    benches.append(peer)
    bench.watch = RankWatch(str(tmp_path), bench, LIMITS, with_peers=True)
    peer.ranks[0].work()
    now = bench.tick_for(PERIOD_S, now)
    peer.ranks[0].begin()
    bench.tick_for(5, now)
    assert bench.accused == []
