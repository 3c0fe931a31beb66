"""A killed engine core is reported before the system has released the memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.core.stalls.stalls import Stall
from holdfast.hosts.vllm.owner import engine_watch
from holdfast.hosts.vllm.owner.engine_watch import EngineWatch
from holdfast.progress.processes import ZOMBIE, ProcessLook, look_at

WAIT_S = 10.0
SLEEPS = "import time; time.sleep(60)"
# The first thread has ended and another one has not: as where the memory of a killed process is being taken back.
LEAVES_A_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(60, 0)
"""


class Bench:
    """Watch over one engine core."""

    def __init__(self, folder: str, program: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", program])
        self.ended: list[tuple[int, int]] = []
        config = HoldfastConfig(runtime_dir=folder, incident_dir=folder)
        pids = lambda: {3: self.process.pid}  # noqa: E731
        self.watch = EngineWatch(config, pids, lambda stall: None, lambda *told: self.ended.append(told))

    def await_zombie(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while look_at(self.process.pid).state != ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def look(self, times: int = 3) -> list[tuple[int, int]]:
        for _ in range(times):
            self.watch.look(time.monotonic())
        return self.ended


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(str(tmp_path_factory.mktemp("watch")), request.param)
    yield made
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize("bench", [SLEEPS], indirect=True)
def test_a_kill_is_reported_once_with_the_signal(bench: Bench) -> None:
    assert bench.look() == []
    bench.process.send_signal(signal.SIGKILL)
    bench.await_zombie()
    assert bench.look() == [(3, signal.SIGKILL)]


@pytest.mark.parametrize("bench", [LEAVES_A_THREAD], indirect=True)
def test_an_engine_core_with_a_remaining_thread_is_reported_too(bench: Bench) -> None:
    bench.await_zombie()
    assert bench.look() == [(3, 0)]
    assert bench.process.poll() is None, "the exit is not visible to a waiting parent yet"


@pytest.mark.parametrize("bench", [SLEEPS], indirect=True)
def test_a_watch_that_fails_at_one_look_looks_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    seen = threading.Event()

    def look(now: float) -> None:
        looks.append(now)
        if len(looks) == 3:
            seen.set()
        raise UnicodeDecodeError("utf-8", b"\xc3", 0, 1, "cut")

    monkeypatch.setattr(bench.watch, "look", look)
    bench.watch.start()
    assert seen.wait(WAIT_S)
    bench.watch.close()


def test_a_failure_with_one_engine_core_leaves_the_others_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_at_one(pid: int) -> ProcessLook:
        if pid == 1001:
            raise ValueError("cannot be read")
        return ProcessLook(ZOMBIE, 0.0, 9)

    monkeypatch.setattr(engine_watch, "look_at", look_at_one)
    ended: list[tuple[int, int]] = []
    config = HoldfastConfig(runtime_dir=str(tmp_path), incident_dir=str(tmp_path))
    pids = {0: 1001, 1: 1002}
    watch = EngineWatch(config, lambda: pids, lambda stall: None, lambda *told: ended.append(told))
    watch.look(1.0)
    assert ended == [(1, 9)]


@pytest.mark.parametrize(
    ("state", "ticks", "reported"),
    [
        ("?", [7, None], True),  # no file descriptor is left to look with
        ("?", [None, None], True),
        ("T", [None, 7], True),
        ("X", [7, None], False),  # gone
        ("X", [None, None], False),
        ("R", [7, 8], False),  # another process has the id now
        ("T", [7, 7], True),
    ],
)
def test_a_stalled_process_that_cannot_be_looked_at_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, ticks: list[int | None], reported: bool
) -> None:
    stall = Stall(0, 1001, True, "stopped")
    told: list[Stall] = []

    class Finds:
        def __init__(self, *_: object) -> None: ...

        def observe(self, *_: object) -> list[Stall]:
            return [stall]

    answers = iter(ticks)
    monkeypatch.setattr(engine_watch, "ProgressWatch", Finds)
    monkeypatch.setattr(engine_watch, "look_at", lambda pid: ProcessLook(state))
    monkeypatch.setattr(engine_watch, "start_ticks", lambda pid: next(answers))
    config = HoldfastConfig(runtime_dir=str(tmp_path), incident_dir=str(tmp_path))
    watch = EngineWatch(config, lambda: {0: 1001}, told.append, lambda *_: None)
    monkeypatch.setattr(watch, "_keep_evidence", lambda stall, engine_id, then: then())
    watch.look(1.0)
    assert bool(told) is reported
