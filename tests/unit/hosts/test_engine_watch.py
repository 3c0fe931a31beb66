"""A killed engine core is reported before the system has released the memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.owner.engine_watch import EngineWatch
from holdfast.progress.processes import ZOMBIE, look_at

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
