"""The owner lets the host end the instance after a fatal exit, and only then."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol.effects import End
from holdfast.hosts.vllm.owner.owner import VllmFrontEndHost
from holdfast.progress.places import places
from holdfast.sentinel.beside import EventSinks

WAIT_S = 10.0
SPAWN = multiprocessing.get_context("spawn")


class Bench:
    """Owner of one engine core, with the host's thread that waits for a fatal exit."""

    def __init__(self) -> None:
        self.owner = VllmFrontEndHost(HoldfastConfig(), [[0]], 0, lambda config: EventSinks())
        self.owner.sentinel.start()
        self.process = SPAWN.Process(target=time.sleep, args=(60,))
        self.process.start()
        self.owner._engines.adopt(None, [self.process])  # type: ignore[arg-type]
        self.manager: Any = SimpleNamespace(manager_stopped=threading.Event())
        self.waiting = threading.Thread(target=self.owner.await_fatal_exit, args=(self.manager,))

    def close(self) -> None:
        self.manager.manager_stopped.set()
        self.process.kill()
        self.process.join(WAIT_S)
        self.waiting.join(WAIT_S)
        self.owner.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_a_defeat_ends_the_wait_without_a_watched_engine_core(bench: Bench) -> None:
    """The last engine core was reported lost before the system told of the exit."""
    assert bench.owner._engines.unwatch(0)
    bench.process.kill()
    bench.waiting.start()
    bench.owner.end_instance(End("nothing repaired it"))
    bench.waiting.join(WAIT_S)
    assert not bench.waiting.is_alive()
    assert not bench.manager.manager_stopped.is_set()


def test_the_host_keeps_waiting_while_a_replacement_starts(bench: Bench) -> None:
    assert bench.owner._engines.unwatch(0)
    bench.waiting.start()
    bench.waiting.join(1.5)
    assert bench.waiting.is_alive()


def test_a_look_at_exits_that_fails_is_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    again = threading.Event()

    def fail(manager: Any, engine_id: int) -> bool:
        looks.append(engine_id)
        if len(looks) > 1:
            again.set()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bench.owner, "_survives_exit", fail)
    bench.process.kill()
    bench.waiting.start()
    assert again.wait(WAIT_S)
    assert bench.waiting.is_alive()


def test_the_guard_is_there_until_nothing_is_left_to_be_removed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is killed at its end, after the guard was dismissed, would leave its folders."""
    owner, left = bench.owner, []
    bench.waiting.start()
    dismiss = owner._guard.close
    monkeypatch.setattr(owner._guard, "close", lambda: (left.extend(places(owner._folder)), dismiss()))
    folders = places(owner._folder)
    assert [folder.exists() for folder in folders] == [True, True]
    owner.close()
    assert left, "the guard was dismissed"
    assert [folder.exists() for folder in folders] == [False, False]
    assert [folder.exists() for folder in left] == [False]
