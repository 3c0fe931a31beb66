"""A repeated command is carried out once, and every repetition gets the outcome of the first."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import CommandConflict, RecoveryFailed
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Command, Credential, Giver, Pause, RestartEngine
from holdfast.core.protocol.effects import ReplaceEngine
from holdfast.sentinel import ClientSentinel
from holdfast.sentinel.begun_commands import MAX_REMEMBERED, REMEMBERED_S, BegunCommands
from holdfast.wire import MemoryNetwork


class Host:
    def __init__(self) -> None:
        self.replaced: list[int] = []

    def unrecoverable_reason(self) -> str:
        return ""

    def close_rendezvous(self, group: tuple[int, ...], epoch: int) -> None: ...

    def replace_engine(self, order: ReplaceEngine) -> None:
        self.replaced.append(order.engine_id)


@pytest.fixture
def owner() -> ClientSentinel:
    made = ClientSentinel([(0,), (1,)], HoldfastConfig(), Host(), MemoryNetwork().station(), "client")  # type: ignore[arg-type]
    for engine_id in (0, 1):
        attach(made, engine_id)
    return made


def attach(owner: ClientSentinel, engine_id: int, pid: int = 7) -> None:
    owner._observe(b"engine-%d" % engine_id, m.EngineAttached(engine_id=engine_id, pid=pid, hooks=(), workers=()))


def begin(owner: ClientSentinel, command: Command) -> Future[None]:
    ended: Future[None] = Future()
    owner._begin(command, ended)
    return ended


def test_a_restart_that_is_sent_three_times_restarts_once_and_all_three_succeed(owner: ClientSentinel) -> None:
    outcomes = [begin(owner, RestartEngine(command_id="key", engine_id=1)) for _ in range(2)]
    attach(owner, 1, pid=99)
    outcomes.append(begin(owner, RestartEngine(command_id="key", engine_id=1)))
    assert [outcome.result(timeout=0) for outcome in outcomes] == [None] * 3
    assert owner._host.replaced == [1]  # type: ignore[attr-defined]


def test_another_command_under_the_same_key_is_refused(owner: ClientSentinel) -> None:
    begin(owner, RestartEngine(command_id="key", engine_id=1))
    error = begin(owner, RestartEngine(command_id="key", engine_id=0)).exception(timeout=0)
    assert isinstance(error, CommandConflict)
    assert "another command" in str(error)
    assert owner._host.replaced == [1]  # type: ignore[attr-defined]


def test_a_command_that_was_refused_may_be_sent_again_under_its_key(owner: ClientSentinel) -> None:
    begin(owner, RestartEngine(command_id="first", engine_id=1))
    refused = begin(owner, Pause(command_id="key", engine_ids=(1,)))
    assert refused.exception(timeout=0) is not None
    attach(owner, 1, pid=99)
    assert not begin(owner, Pause(command_id="key", engine_ids=(1,))).done()


def test_a_repetition_whose_caller_has_left_disturbs_nothing(owner: ClientSentinel) -> None:
    first = begin(owner, RestartEngine(command_id="key", engine_id=1))
    assert begin(owner, RestartEngine(command_id="key", engine_id=1)).cancel()
    attach(owner, 1, pid=99)
    assert first.result(timeout=0) is None


def test_the_outcome_of_a_command_whose_first_caller_has_left_is_unknown_and_no_success(owner: ClientSentinel) -> None:
    assert begin(owner, RestartEngine(command_id="key", engine_id=1)).cancel()
    again = begin(owner, RestartEngine(command_id="key", engine_id=1))
    assert isinstance(again.exception(timeout=0), RecoveryFailed)
    assert owner._host.replaced == [1]  # type: ignore[attr-defined]


def test_so_many_commands_are_remembered_and_no_more(owner: ClientSentinel) -> None:
    begun = BegunCommands()
    for number in range(MAX_REMEMBERED + 5):
        begun.remember(Pause(command_id=str(number)), Future(), now=0.0)
    assert len(begun) == MAX_REMEMBERED
    assert not begun.answer_again(Pause(command_id="0"), Future(), owner.view(), now=0.0)
    assert begun.answer_again(Pause(command_id=str(MAX_REMEMBERED)), Future(), owner.view(), now=0.0)


def test_a_command_is_remembered_for_a_day_and_then_its_key_is_new_again(owner: ClientSentinel) -> None:
    begun, command = BegunCommands(), Pause(command_id="key")
    begun.remember(command, Future(), now=100.0)
    begun.remember(Pause(command_id="later"), Future(), now=200.0)
    assert begun.answer_again(command, Future(), owner.view(), now=100.0 + REMEMBERED_S - 1)
    assert not begun.answer_again(command, Future(), owner.view(), now=100.0 + REMEMBERED_S)
    assert len(begun) == 1


def test_a_repetition_from_elsewhere_is_a_repetition_and_the_first_giver_stays(owner: ClientSentinel) -> None:
    """The first call may have come through a proxy that is gone."""
    for address in ("10.0.0.1", "10.0.0.2"):
        giver = Giver(credential=Credential.TOKEN_FROM_FILE, address=address, idempotency_key="key")
        begin(owner, RestartEngine(command_id="key", engine_id=1, given_by=giver))
    assert owner._host.replaced == [1]  # type: ignore[attr-defined]
    givers = [event.given_by for event in owner.history() if event.command_id == "key"]
    assert [giver and giver.address for giver in givers] == ["10.0.0.1"]
