"""A host that fails an effect: the effects that follow are carried out, and status and core agree."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import Future

import msgspec
import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Pause, Retry
from holdfast.core.protocol.effects import End, LeaveOut, ReplaceEngine, ReplaceProcess
from holdfast.core.protocol.events import EventKind
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState
from holdfast.sentinel import ClientSentinel
from holdfast.wire import MemoryNetwork

NO_FILES = OSError(errno.EMFILE, "Too many open files")


class Host:
    """Front end whose every service may fail as often as told."""

    def __init__(self) -> None:
        self.failures: dict[str, list[Exception]] = {}
        self.done: list[str] = []

    def _do(self, what: str) -> None:
        if self.failures.get(what):
            raise self.failures[what].pop(0)
        self.done.append(what)

    def open_rendezvous(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        self._do("open")
        return Rendezvous("here", 1, epoch)

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None:
        self._do("close")

    def replace_engine(self, order: ReplaceEngine) -> None:
        self._do("replace")

    def leave_out_engine(self, order: LeaveOut) -> None:
        self._do("leave out")

    def replace_process(self, order: ReplaceProcess) -> None:
        self._do("process")

    def end_instance(self, order: End) -> None:
        self._do("end")

    def unrecoverable_reason(self) -> str:
        self._do("ask")
        return ""


class Owner:
    """Sentinel whose thread is the test's own: facts go in, effects are carried out before the call returns."""

    def __init__(self, *groups: tuple[int, ...], **settings: object) -> None:
        self.host = Host()
        config = HoldfastConfig(**settings)  # type: ignore[arg-type]
        self.sentinel = ClientSentinel(groups, config, self.host, MemoryNetwork().station(), "client")
        for engine_id in [e for group in groups for e in group]:
            self.say(m.EngineAttached(engine_id=engine_id, pid=7, hooks=(), workers=()))

    def say(self, report: m.FromEngine) -> None:
        self.sentinel._observe(b"engine-%d" % report.engine_id, msgspec.structs.replace(report, pid=7))

    def break_all(self, *engines: int) -> None:
        for engine_id in engines:
            epoch, fault = self.epoch, _fault(engine_id)
            self.say(m.EnginePaused(engine_id=engine_id, epoch=epoch, fault=fault, unfinished_requests=0, broken=True))

    @property
    def epoch(self) -> int:
        return self.sentinel.view().engines[0].epoch

    def states(self) -> list[EngineState]:
        return [e.state for e in self.sentinel.view().engines]

    def assert_status_and_core_agree(self) -> None:
        # What a consumer of this process has lost is no state of the instance.
        assert msgspec.structs.replace(self.sentinel.view(), dropped={}) == self.sentinel._instance.view()
        numbers = [e.sequence for e in self.sentinel.history()]
        assert numbers == list(range(1, len(numbers) + 1))


def _fault(engine_id: int) -> Fault:
    return Fault(fault_class=FaultClass.TRANSIENT, error_type="E", message="boom", engine_id=engine_id)


@pytest.fixture
def pair() -> Iterator[Owner]:
    owner = Owner((0, 1))
    yield owner
    owner.sentinel.close()


def test_without_a_file_for_the_rendezvous_the_recovery_fails_and_the_next_one_succeeds(pair: Owner) -> None:
    """Before, all events that followed were lost, and both healthy engine cores were killed after their bounds."""
    pair.host.failures["open"] = [NO_FILES]
    pair.break_all(0, 1)
    pair.assert_status_and_core_agree()
    kinds = [e.kind for e in pair.sentinel.history()]
    assert kinds.count(EventKind.RECOVERY_FAILED) == 2
    failed = next(e for e in pair.sentinel.history() if e.kind is EventKind.RECOVERY_FAILED)
    assert failed.fault is not None
    assert "Too many open files" in failed.fault.message
    pair.sentinel._perform(pair.sentinel._instance.tick(1e12))  # whatever was to be waited for
    assert "open" in pair.host.done


def test_a_rendezvous_that_cannot_be_closed_keeps_no_repair_from_its_end(pair: Owner) -> None:
    pair.host.failures["close"] = [NO_FILES] * 100
    pair.sentinel._perform(pair.sentinel._instance.lost(0, "killed", 0.0))
    assert pair.host.done.count("replace") == 1
    pair.assert_status_and_core_agree()


def test_a_replacement_that_cannot_be_started_is_tried_again() -> None:
    owner = Owner((0,), (1,))
    owner.host.failures["replace"] = [RuntimeError("can't start new thread")]
    owner.sentinel._perform(owner.sentinel._instance.lost(0, "killed", 0.0))
    assert owner.host.done == ["close"]
    owner.sentinel._perform(owner.sentinel._instance.tick(1e12))  # whatever was to be waited for
    assert owner.host.done == ["close", "close", "replace"]
    assert owner.states() == [EngineState.RESTARTING, EngineState.HEALTHY]
    owner.assert_status_and_core_agree()
    owner.sentinel.close()


def test_when_everything_fails_the_instance_ends_and_says_why() -> None:
    owner = Owner((0,))
    owner.host.failures["replace"] = [RuntimeError("can't start new thread")] * 1000
    owner.sentinel._perform(owner.sentinel._instance.lost(0, "killed", 0.0))
    for days in range(1, 20):
        owner.sentinel._perform(owner.sentinel._instance.tick(days * 1e9))
    assert owner.host.done[-1] == "end"
    assert "can't start new thread" in str(owner.sentinel.view().defeat)
    owner.assert_status_and_core_agree()
    owner.sentinel.close()


def test_a_command_that_cannot_be_judged_is_answered_all_the_same(pair: Owner) -> None:
    pair.host.failures["ask"] = [NO_FILES]
    ended: Future[None] = Future()
    with pytest.raises(OSError, match="Too many"):
        pair.sentinel._begin(Retry(command_id="c", engine_ids=()), ended)
    assert ended.exception(timeout=0) is NO_FILES


def test_a_command_after_a_failed_effect_is_carried_out(pair: Owner) -> None:
    pair.host.failures["open"] = [NO_FILES]
    pair.break_all(0, 1)
    ended: Future[None] = Future()
    pair.sentinel._begin(Pause(command_id="c", engine_ids=()), ended)
    pair.assert_status_and_core_agree()
