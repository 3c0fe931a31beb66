"""A pool of standbys: filled slot by slot, emptied by lost ranks, refilled after a growing delay."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.protocol.messages import Standbys
from holdfast.hosts.vllm.engine.worker_pool import standby_pool as module
from holdfast.hosts.vllm.engine.worker_pool.standby_pool import StandbyPool
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.worker.standby import DEVICE_FULL

WITHIN_S = 10.0


class Process:
    """A process that a test ends. The sentinel is a pipe, which becomes readable like the system's descriptor."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exitcode: int | None = None
        self.sentinel, self._end = os.pipe()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def die(self, exitcode: int) -> None:
        if self.exitcode is None:
            self.exitcode = exitcode
            os.close(self._end)


class Standby:
    """A standby as far as the pool uses the process."""

    def __init__(self, pid: int, rank: int | None) -> None:
        self.process, self.rank, self.killed = Process(pid), rank, False
        self.orders, self._theirs = multiprocessing.Pipe()

    def say_ready(self) -> None:
        self._theirs.send_bytes(b"ready")

    def kill(self) -> None:
        self.killed = True
        self.process.die(-9)


class World:
    """Starts standbys; records the reported states of the pool and the changes of priority."""

    refusal: Exception = OSError("no memory")

    def __init__(self, *, preloaded: bool = True, refusals: int = 0) -> None:
        self.made: list[Standby] = []
        self.told: list[Standbys] = []
        self.paces: list[tuple[int, str]] = []
        self.preloaded, self.refusals = preloaded, refusals

    def start(self, slot: int) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        self.made.append(Standby(1000 + len(self.made), slot if self.preloaded else None))
        return self.made[-1]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "REFILL_DELAY_S", 0.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.05)
    for pace in ("slow_down", "hurry"):
        monkeypatch.setattr(priority, pace, lambda pid, pace=pace: made.paces.append((pid, pace)))
    monkeypatch.setattr(module, "_resident_bytes", lambda _pid: 100)
    return made


@pytest.fixture
def pool_of(world: World) -> Iterator[Callable[[int], StandbyPool]]:
    pools: list[StandbyPool] = []

    def make(size: int) -> StandbyPool:
        pools.append(StandbyPool(size, world.start, world.told.append))
        pools[-1].start()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.002)


def ready(world: World, count: int) -> bool:
    return bool(world.told) and world.told[-1].ready == count


def fill(world: World, count: int) -> None:
    until(lambda: len(world.made) == count)
    for one in world.made:
        one.say_ready()
    until(lambda: ready(world, count))


Pools = Callable[[int], StandbyPool]


def test_the_pool_fills_and_reports_its_state(world: World, pool_of: Pools) -> None:
    """A standby sets its own pace: at the lowest policy it would never be ready beside full load."""
    pool_of(2)
    until(lambda: bool(world.told))
    assert world.told[0].starting > 0
    fill(world, 2)
    assert world.told[-1] == Standbys(wanted=2, ready=2, memory_bytes=200, last_start_s=world.told[-1].last_start_s)
    assert world.paces == []
    assert [one.rank for one in world.made] == [0, 1]


def test_nothing_is_started_during_a_recovery(world: World, pool_of: Pools) -> None:
    priority.share_hold()
    priority.hold()
    try:
        pool = pool_of(1)
        pool._turn()
        assert world.made == []
    finally:
        priority.release()
    fill(world, 1)


class Parent:
    """A parent of standbys that is ready once a test says so."""

    server = None
    ready = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def prepare(self) -> bool:
        return self.ready

    def note_failure(self) -> None:
        self.told.append("failure")

    def note_success(self) -> None:
        self.told.append("success")

    def close(self) -> None:
        self.told.append("closed")


def test_standbys_wait_for_their_parent_which_is_told_how_they_fare(world: World) -> None:
    parent = Parent()
    pool = StandbyPool(1, world.start, world.told.append, parent)  # type: ignore[arg-type]
    pool._turn()
    assert world.made == []
    parent.ready = True
    pool._turn()
    world.made[0].process.die(1)
    pool._turn()
    assert (parent.told, world.told[-1].failures, world.told[-1].problem) == (["failure"], 1, "exit code 1")
    pool._fill_at = 0.0
    pool._fill()
    world.made[1].say_ready()
    pool._turn()
    pool.close()
    assert parent.told == ["failure", "success", "closed"]
    assert (world.told[-1].ready, world.told[-1].failures, world.told[-1].problem) == (1, 0, "")


def test_a_standby_whose_weights_do_not_fit_on_the_device_becomes_a_plain_one(world: World) -> None:
    pool = StandbyPool(2, world.start, world.told.append)
    pool._turn()
    world.made[0].process.die(DEVICE_FULL)
    pool._turn()
    assert [pool.is_plain(slot) for slot in (0, 1)] == [True, False]
    pool._turn()
    assert world.told[-1].without_weights == 1
    assert world.told[-1].failures == 0, "the next start is not delayed"
    assert world.told[-1].problem.startswith("the device is full")
    assert len(world.made) == 3
    pool.close()


def test_a_standby_that_never_becomes_ready_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_START_S", -1.0)
    pool = StandbyPool(1, world.start, world.told.append)
    killed: list[int] = []
    monkeypatch.setattr(Process, "kill", lambda self: killed.append(self.pid), raising=False)
    pool._turn()
    assert killed == [1000]
    pool.close()


def test_a_pool_of_none_starts_nothing(world: World, pool_of: Pools) -> None:
    assert pool_of(0).take(0) is None
    assert (world.made, world.told) == ([], [])


def test_a_taken_standby_is_hurried_and_another_fills_the_slot(world: World, pool_of: Pools) -> None:
    pool = pool_of(1)
    fill(world, 1)
    assert pool.take(0) is world.made[0]
    assert (1000, "hurry") in world.paces
    until(lambda: len(world.made) == 2)
    assert not world.made[0].killed
    until(lambda: ready(world, 0))


def test_a_standby_with_the_weights_of_another_rank_does_not_fit(world: World, pool_of: Pools) -> None:
    pool = pool_of(1)
    fill(world, 1)
    assert pool.take(1) is None
    assert pool.take(0) is not None


def test_a_standby_without_weights_fits_every_rank(world: World, pool_of: Pools) -> None:
    world.preloaded = False
    pool = pool_of(1)
    fill(world, 1)
    assert pool.take(7) is world.made[0]


def test_a_ready_standby_is_taken_first_and_then_one_that_is_not_ready(world: World, pool_of: Pools) -> None:
    world.preloaded = False
    pool = pool_of(2)
    until(lambda: len(world.made) == 2)
    world.made[1].say_ready()
    until(lambda: ready(world, 1))
    assert pool.take(0) is world.made[1]
    assert pool.take(0) is world.made[0]


def test_a_dead_standby_is_replaced_and_never_taken(world: World, pool_of: Pools) -> None:
    pool = pool_of(1)
    fill(world, 1)
    world.made[0].process.die(-9)
    assert pool.take(0) is not world.made[0]
    until(lambda: len(world.made) == 2 and world.made[0].killed)
    world.made[1].say_ready()
    until(lambda: ready(world, 1))


@pytest.mark.parametrize("refusal", [OSError("no memory"), RuntimeError("can't start new thread")])
def test_a_start_that_fails_is_repeated(world: World, pool_of: Pools, refusal: Exception) -> None:
    world.refusals, world.refusal = 3, refusal
    pool_of(1)
    fill(world, 1)
    assert (world.refusals, len(world.made)) == (0, 1)


def test_delays_after_deaths_grow_until_a_standby_is_ready(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 60.0)
    pool, now_s = StandbyPool(1, world.start, world.told.append), time.monotonic()
    pauses = []
    for _ in range(8):
        pool._postpone("it died")
        pauses.append(round(pool._fill_at - now_s))
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    pool._fill_at = 0.0
    pool._fill()
    world.made[0].say_ready()
    assert pool._look()
    assert pool._failures == 0
    pool.close()


def test_closing_ends_every_standby_and_the_thread(world: World, pool_of: Pools) -> None:
    pool = pool_of(2)
    fill(world, 2)
    pool.close()
    assert all(one.killed for one in world.made)
    for thread in threading.enumerate():
        if thread.name == "StandbyPool":
            thread.join(10.0)
            assert not thread.is_alive()
    assert pool.take(0) is None


def test_a_reported_failure_delays_the_next_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 60.0)
    pool, now_s = StandbyPool(1, world.start, world.told.append), time.monotonic()
    pool.report_failure("it did not start")
    pool.report_failure("it did not start")
    assert round(pool._fill_at - now_s) == 4
