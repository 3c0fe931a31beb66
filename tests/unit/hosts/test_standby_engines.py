"""Standby engine cores: kept ready, taken when ready, replaced when dead, ended with the instance."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.owner import standby_engines as module
from holdfast.hosts.vllm.owner.standby_engines import StandbyEngine, StandbyEngines
from holdfast.hosts.vllm.protocol import decode_engine_order

FORK = multiprocessing.get_context("fork")
WAIT_S = 10.0


def obey(orders: Connection, theirs: Connection) -> None:
    theirs.close()
    orders.send_bytes(b"ready")
    order = decode_engine_order(orders.recv_bytes())
    raise SystemExit(7 if order.environment == {"A": "b"} and order.handshake_address == "there" else 1)


class Pool:
    def __init__(self) -> None:
        self.started: list[StandbyEngine] = []
        self.standbys = StandbyEngines(1, self._start)

    def _start(self) -> StandbyEngine:
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=obey, args=(theirs, ours))
        process.start()
        theirs.close()
        self.started.append(StandbyEngine(process, ours))
        return self.started[-1]

    def take(self) -> StandbyEngine:
        deadline = time.monotonic() + WAIT_S
        while (taken := self.standbys.take()) is None:
            self.standbys._fill_at = 0.0
            self.standbys.look()
            assert time.monotonic() < deadline
        return taken


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.standbys.close()
    for standby in made.started:
        standby.kill()


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_standby_is_taken_once_it_is_ready_and_carries_out_its_order(pool: Pool) -> None:
    assert pool.standbys.take() is None
    taken = pool.take()
    taken.replace({"A": "b"}, "there")
    taken.process.join(WAIT_S)
    assert taken.process.exitcode == 7


def test_a_standby_that_was_taken_is_replaced_after_a_while(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.take()
    pool.standbys.look()
    assert len(pool.started) == 1  # the replacement of the engine core comes first
    pool.standbys._fill_at = 0.0
    pool.standbys.look()
    assert len(pool.started) == 2


def test_a_dead_standby_is_not_taken_and_another_is_started_later(pool: Pool) -> None:
    pool.standbys.look()
    pool.started[0].process.kill()
    pool.started[0].process.join(WAIT_S)
    pool.standbys.look()
    assert pool.standbys.take() is None
    assert pool.standbys._fill_at > time.monotonic() + 1.0
    assert pool.take() is pool.started[1]


def test_standbys_end_with_the_instance(pool: Pool) -> None:
    pool.standbys.look()
    pool.standbys.close()
    assert pool.started[0].process.exitcode is not None
    pool.standbys._fill_at = 0.0
    pool.standbys.look()
    assert all(standby.process.exitcode is not None for standby in pool.started)


def test_a_start_that_fails_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    standbys = StandbyEngines(1, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    standbys.look()
    assert standbys._fill_at > time.monotonic() + 1.0
    assert module.LONGEST_PAUSE_S >= 60.0
