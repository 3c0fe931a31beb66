"""The watch over API servers and coordinator: which exits count as losses, and what the host sees of them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol.effects import ReplaceProcess
from holdfast.hosts.vllm.owner.front_end_watch import FrontEndWatch
from holdfast.hosts.vllm.process.reserve import Reserve

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


class ApiServer:
    """A front-end process whose replacements work, until told otherwise."""

    name = NAME

    def __init__(self) -> None:
        self.process = Process()
        self.noted = threading.Event()
        self.fails: Exception | None = None
        self.cannot_note: Exception | None = None

    def note_loss(self) -> None:
        if self.cannot_note is not None:
            raise self.cannot_note
        self.noted.set()

    def unrecoverable_reason(self) -> str:
        return ""

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        self.process = Process()
        on_started()
        if self.fails is not None:
            raise self.fails


class Instance:
    """A recorder of the reports to the sentinel, and of whether the instance ends."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[str, ...]] = queue.Queue()
        self.ends = threading.Event()
        self.server = ApiServer()
        self.reserve = Reserve()
        self.watch = FrontEndWatch(self, self.ends.wait, self.reserve)  # type: ignore[arg-type]
        self.watch.start([self.server])

    def process_lost(self, name: str, why: str, unrecoverable_reason: str, pid: int) -> None:
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
    made.reserve.close()


def has_ended(proxy: Any, within_s: float = 0.0) -> bool:
    return bool(multiprocessing.connection.wait([proxy.sentinel], within_s))


def test_a_watched_process_is_reported_with_its_process_id(instance: Instance) -> None:
    assert instance.attached == (NAME, Process.pid)


def test_a_process_that_dies_is_reported_and_noted(instance: Instance) -> None:
    instance.server.process.end(-9)
    assert instance.next() == ("lost", NAME, "exit code -9")
    assert instance.server.noted.is_set()


def test_a_loss_is_told_even_when_the_shared_state_cannot_be_corrected_and_so_is_the_next(instance: Instance) -> None:
    instance.server.cannot_note = OSError(24, "Too many open files")
    for _ in range(2):
        instance.server.process.end(-9)
        assert instance.next() == ("lost", NAME, "exit code -9")
        instance.watch.replace(ReplaceProcess(NAME, 0.0))
        assert instance.next() == ("returned", NAME)


def test_the_host_does_not_see_a_death_that_a_replacement_repairs(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.server.process.end(-9)
    instance.next()
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    assert instance.next() == ("returned", NAME)
    assert not has_ended(proxy)
    assert proxy.exitcode is None


def test_a_replacement_is_watched_as_well(instance: Instance) -> None:
    instance.server.process.end(-9)
    instance.next()
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    instance.next()
    instance.server.process.end(1)
    assert instance.next() == ("lost", NAME, "exit code 1")


def test_a_requested_exit_is_no_loss_and_the_host_sees_it(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.server.process.end(0)
    assert has_ended(proxy, WAIT_S)
    assert proxy.exitcode == 0
    assert instance.told.empty()


def test_a_start_that_fails_is_a_loss_and_leaves_no_process(instance: Instance) -> None:
    instance.server.process.end(-9)
    instance.next()
    instance.server.fails = RuntimeError(PublicText("it bound no addresses"))
    instance.watch.replace(ReplaceProcess(NAME, 0.0))
    assert instance.next() == ("lost", NAME, "the replacement did not start: it bound no addresses")
    assert instance.server.process.exitcode == -signal.SIGKILL


def test_at_a_defeat_the_host_sees_the_end_of_a_lost_process(instance: Instance) -> None:
    proxy = instance.watch.proxy(NAME)
    instance.server.process.end(-9)
    instance.next()
    instance.watch.end_lost()
    assert has_ended(proxy, WAIT_S)
    assert (proxy.name, proxy.exitcode) == ("ApiServer_1", -9)


def test_while_all_processes_are_being_ended_none_is_lost(instance: Instance) -> None:
    instance.watch.close()
    instance.server.process.end(-9)
    instance.watch._thread._thread.join(WAIT_S)
    assert instance.told.empty()


def test_a_signal_for_the_whole_session_may_reach_the_owner_later(instance: Instance) -> None:
    instance.server.process.end(-signal.SIGTERM)
    instance.ends.set()
    instance.watch._thread._thread.join(WAIT_S)
    assert instance.told.empty()


def test_an_ending_instance_starts_no_replacement(instance: Instance) -> None:
    instance.server.process.end(-9)
    instance.next()
    first = instance.server.process
    instance.ends.set()
    instance.watch._replace(instance.server, ReplaceProcess(instance.server.name, 5.0))
    assert instance.server.process is first


def test_a_replacement_started_as_the_instance_ends_is_killed(instance: Instance) -> None:
    instance.ends.set()
    instance.watch._kill_if_ending(instance.server)
    assert instance.server.process.exitcode == -signal.SIGKILL
