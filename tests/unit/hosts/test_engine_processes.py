"""Processes of lost engine cores: awaited until gone, and never confused with a later process of the same id."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine
from holdfast.hosts.vllm.owner import engine_processes as module
from holdfast.hosts.vllm.owner.engine_processes import EngineProcesses
from holdfast.hosts.vllm.process import lifecycle
from holdfast.hosts.vllm.process.reserve import Reserve

WAIT_S = 10.0
SPAWN = multiprocessing.get_context("spawn")


class Sentinel:
    """Recorder of reported losses."""

    def __init__(self, config: HoldfastConfig) -> None:
        self.config = config
        self.lost: list[str] = []

    def engine_lost(self, engine_id: int, why: str, unrecoverable_reason: str = "", pid: int | None = None) -> None:
        self.lost.append(why)

    def await_known(self, sequence: int, timeout_s: float) -> bool:
        return True

    def view(self) -> Any:
        return type("View", (), {"engines": ()})()


class Bench:
    def __init__(self, folder: Path) -> None:
        self.process = SPAWN.Process(target=time.sleep, args=(60,))
        self.process.start()
        config = HoldfastConfig(runtime_dir=str(folder))
        self.sentinel, self.reserve = Sentinel(config), Reserve()
        self.engines = EngineProcesses(self.sentinel, config, lambda seconds: False, lambda: "", self.reserve)  # type: ignore[arg-type]
        self.engines.adopt(object(), [self.process])  # type: ignore[arg-type]

    def die(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.process.kill()
    made.process.join(WAIT_S)
    made.reserve.close()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_an_engine_core_left_out_leaves_no_zombie(bench: Bench) -> None:
    pid = bench.process.pid
    assert pid is not None
    bench.die()
    bench.engines.leave_out(LeaveOut(0))
    wait_until(lambda: not psutil.pid_exists(pid))


def test_a_live_engine_core_is_killed_before_it_is_left_out(bench: Bench) -> None:
    bench.engines.leave_out(LeaveOut(0, kill=True))
    wait_until(lambda: bench.process.exitcode == -signal.SIGKILL)


def test_the_end_of_the_instance_leaves_no_stopped_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped worker does not follow its dead engine core by itself."""
    monkeypatch.setattr(lifecycle, "LINGER_S", 0.1)
    worker = SPAWN.Process(target=time.sleep, args=(60,))
    worker.start()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    bench.die()
    bench.engines.end(End("nothing repaired it", (worker.pid,)), time.time())
    worker.join(WAIT_S)
    assert (worker.exitcode, bench.process.exitcode) == (-signal.SIGKILL, -signal.SIGKILL)


def test_after_a_failed_start_the_dead_process_id_is_not_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have given the id to another process by then."""
    killed: list[int] = []
    monkeypatch.setattr(module, "kill_tree", killed.append)
    monkeypatch.setattr(module, "start_engine_core", lambda *_, **__: 1 / 0)
    bench.die()
    bench.engines.replace(ReplaceEngine(0, after_s=0.0, known_at=1))
    wait_until(lambda: bool(bench.sentinel.lost))
    assert "did not start: division by zero" in bench.sentinel.lost[0]
    assert killed == []


def test_an_exit_is_a_loss_only_once(bench: Bench) -> None:
    assert bench.engines.watched == [0]
    assert [bench.engines.unwatch(0), bench.engines.unwatch(0)] == [True, False]
    assert bench.engines.watched == []


# ---- workers that outlive their engine core


class Starts:
    """Recorder of starts; the first ones fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> None:
        self.adopted: list[tuple[int, ...]] = []
        self._failures = failures
        monkeypatch.setattr(module, "start_engine_core", self._start)

    def _start(self, *about: Any, **_: Any) -> None:
        self.adopted.append(tuple(about[4].adopts))
        if len(self.adopted) <= self._failures:
            raise RuntimeError("no")


@pytest.fixture
def worker() -> Iterator[Any]:
    process = SPAWN.Process(target=time.sleep, args=(60,))
    process.start()
    yield process
    process.kill()
    process.join(WAIT_S)


def lose(bench: Bench, *pids: int, adopt: bool = True, **about: Any) -> None:
    bench.engines._config = bench.sentinel.config = HoldfastConfig(
        runtime_dir=bench.sentinel.config.runtime_dir, adopt_workers=adopt
    )
    bench.sentinel.await_attached_again = lambda *_: True  # type: ignore[attr-defined]
    bench.sentinel.view = lambda: SimpleNamespace(engines=(), engine=lambda _: None)  # type: ignore[method-assign]
    bench.die()
    bench.engines.replace(ReplaceEngine(0, after_s=0.0, known_at=1, processes=pids, **about))


def test_living_workers_are_left_to_the_replacement(bench: Bench, worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    lose(bench, worker.pid)
    wait_until(lambda: starts.adopted == [(worker.pid,)])
    assert worker.is_alive()


@pytest.mark.parametrize("about", [{"adopt": False}, {"kill": True}, {"joins_epoch": 1}], ids=str)
def test_workers_that_cannot_be_adopted_are_ended_first(
    bench: Bench, worker: Any, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any]
) -> None:
    monkeypatch.setattr(lifecycle, "LINGER_S", 0.1)
    starts = Starts(monkeypatch)
    lose(bench, worker.pid, **about)
    wait_until(lambda: starts.adopted == [()])
    assert not worker.is_alive()


def test_a_dead_worker_takes_its_peers_along(bench: Bench, worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    lose(bench, worker.pid, 2**22 - 1)
    wait_until(lambda: starts.adopted == [()])
    assert not worker.is_alive()


def test_after_a_failed_adoption_the_workers_are_replaced_too(
    bench: Bench, worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(monkeypatch, failures=1)
    lose(bench, worker.pid)
    wait_until(lambda: starts.adopted == [(worker.pid,), ()])
    assert not worker.is_alive()
    assert bench.sentinel.lost == []
