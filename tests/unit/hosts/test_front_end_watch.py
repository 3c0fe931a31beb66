"""The watch over the processes beside the engine cores: what it takes for a loss, and what the host is shown of it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast.core.protocol.effects import ReplaceProcess
from holdfast.hosts.vllm.owner.front_end_watch import FrontEndWatch

WAIT_S = 10.0
NAME = "api-server-1"


class Process:
    """A process as far as it can be watched."""

    name, pid = "ApiServer_1", 4711

    def __init__(self) -> None:
        self.exitcode: int | None = None
        self.sentinel, self._alive = multiprocessing.Pipe(duplex=False)

    def end(self, exit_code: int) -> None:
        self.exitcode = exit_code
        self._alive.close()

    def join(self, timeout_s: float) -> None:
        pass

    def kill(self) -> None:
        if self.exitcode is None:
            self.end(-signal.SIGKILL)


class Member:
    """Starts processes that work, until it is told otherwise."""

    name = NAME

    def __init__(self) -> None:
        self.process = Process()
        self.noted = threading.Event()
        self.fails: Exception | None = None

    def note_loss(self) -> None:
        self.noted.set()

    def unrecoverable_reason(self) -> str:
        return ""

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        self.process = Process()
        on_started()
        if self.fails is not None:
            raise self.fails


class Instance:
    """What is told to the sentinel, and whether the instance ends."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, ...]] = queue.Queue()
        self.ends = threading.Event()
        self.member = Member()
        self.watch = FrontEndWatch(self, self.ends.wait)  # type: ignore[arg-type]
        self.watch.start([self.member])

    def process_lost(self, name: str, why: str, unrecoverable_reason: str) -> None:
        self.told.put(("lost", name, why))

    def process_attached(self, name: str, pid: int) -> None:
        self.attached = name, pid

    def process_returned(self, name: str, pid: int) -> None:
        self.told.put(("returned", name))

    def next(self) -> tuple[str, ...]:
        return self.told.get(timeout=WAIT_S)


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance()
    yield made
    made.ends.set()
    made.watch.close()


def has_ended(proxy: Any, within_s: float = 0.0) -> bool:
    return bool(multiprocessing.connection.wait([proxy.sentinel], within_s))


def test_what_is_watched_is_told_with_its_process_id(instance: Instance) -> None:
    assert instance.attached == (NAME, Process.pid)


def test_a_process_that_dies_is_told_and_noted(instance: Instance) -> None:
    instance.member.process.end(-9)
    assert instance.next() == ("lost", NAME, "exit code -9")
    assert instance.member.noted.is_set()


def test_the_host_sees_nothing_of_a_death_that_another_process_makes_up_for(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.member.process.end(-9)
    instance.next()
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    assert instance.next() == ("returned", NAME)
    assert not has_ended(proxy)
    assert proxy.exitcode is None


def test_what_took_its_place_is_watched_as_well(instance: Instance) -> None:
    instance.member.process.end(-9)
    instance.next()
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    instance.next()
    instance.member.process.end(1)
    assert instance.next() == ("lost", NAME, "exit code 1")


def test_one_that_was_asked_to_end_is_not_lost_and_the_host_sees_its_end(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.member.process.end(0)
    assert has_ended(proxy, WAIT_S)
    assert proxy.exitcode == 0
    assert instance.told.empty()


def test_a_start_that_fails_is_a_loss_and_leaves_no_process(instance: Instance) -> None:
    instance.member.process.end(-9)
    instance.next()
    instance.member.fails = RuntimeError("it bound\nno addresses")
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    assert instance.next() == ("lost", NAME, "what was to take its place did not start: it bound no addresses")
    assert instance.member.process.exitcode == -signal.SIGKILL


def test_who_is_gone_when_the_instance_is_defeated_ends_for_the_host_too(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.member.process.end(-9)
    instance.next()
    instance.watch.give_up()
    assert has_ended(proxy, WAIT_S)
    assert (proxy.name, proxy.exitcode) == ("ApiServer_1", -9)


def test_while_everybody_is_being_ended_nobody_is_lost(instance: Instance) -> None:
    instance.watch.close()
    instance.member.process.end(-9)
    instance.watch._thread.join(WAIT_S)
    assert instance.told.empty()


def test_a_signal_for_all_reaches_the_owner_a_moment_later(instance: Instance) -> None:
    instance.member.process.end(-signal.SIGTERM)
    instance.ends.set()
    instance.watch._thread.join(WAIT_S)
    assert instance.told.empty()


def test_an_instance_that_ends_starts_nothing(instance: Instance) -> None:
    instance.member.process.end(-9)
    instance.next()
    first = instance.member.process
    instance.ends.set()
    instance.watch._replace(instance.member, 5.0)
    assert instance.member.process is first


def test_one_that_was_started_as_the_instance_ended_is_killed(instance: Instance) -> None:
    instance.ends.set()
    instance.watch._end_with_the_others(instance.member)
    assert instance.member.process.exitcode == -signal.SIGKILL
