"""The owner of the engine cores lets the host end the others only when it is time, and then always."""

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
from holdfast.hosts.vllm.owner.owner import EventSinks, VllmFrontEndHost

WAIT_S = 10.0
SPAWN = multiprocessing.get_context("spawn")


class Bench:
    """An owner of one engine core, and the host's thread that waits for the death of one."""

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


def test_a_defeat_is_the_end_where_nobody_is_left_whose_death_would_say_so(bench: Bench) -> None:
    """As when the last engine core was taken for lost before the system told of its death."""
    assert bench.owner._engines.unwatch(0)
    bench.process.kill()
    bench.waiting.start()
    bench.owner.end_instance(End("nothing repaired it"))
    bench.waiting.join(WAIT_S)
    assert not bench.waiting.is_alive()
    assert not bench.manager.manager_stopped.is_set()


def test_while_another_one_is_started_the_host_goes_on_waiting(bench: Bench) -> None:
    assert bench.owner._engines.unwatch(0)
    bench.waiting.start()
    bench.waiting.join(1.5)
    assert bench.waiting.is_alive()
