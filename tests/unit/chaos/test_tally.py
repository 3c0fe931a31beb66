"""A chaos run's answers: what is wrong is counted, what ended with its API server is counted apart."""

from __future__ import annotations

import pytest

from holdfast.chaos.history import History
from holdfast.chaos.tally import MAX_PROBLEMS, Kill, Tally
from holdfast.chaos.victims import ProcessKind, Victim


def answer(tokens: list[int], *, name: str = "one", port: int | None = 7, error: str | None = None) -> History:
    arrivals = [1.0 + number for number in range(len(tokens))]
    finish = None if error else "length"
    return History(name, 0.5, tokens, arrivals, finish_reason=finish, error=error, port=port)


def killed(kind: ProcessKind = ProcessKind.API_SERVER, *, at_s: float = 2.5, ports: tuple[int, ...] = (7,)) -> Kill:
    return Kill(Victim(kind, 1, "it"), at_s, frozenset(ports))


def tally_of(*observed: History, kills: tuple[Kill, ...] = ()) -> Tally:
    tally = Tally([answer([1, 2, 3, 4])])
    tally.add(observed, kills)
    return tally


def test_an_answer_of_a_fault_free_run_is_exact() -> None:
    """Whatever was killed meanwhile; its longest wait is the kill's."""
    kill = killed(ProcessKind.WORKER)
    tally = tally_of(answer([1, 2, 3, 4]), kills=(kill,))
    assert (tally.exact, tally.wrong, tally.answers, tally.tokens) == (1, 0, 1, 4)
    assert kill.longest_gap_s == 1.0


@pytest.mark.parametrize(
    ("observed", "lost", "changed"),
    [(answer([1, 2, 3]), 1, 0), (answer([1, 9, 3, 4]), 0, 1), (answer([1, 2], error="cut"), 2, 0)],
    ids=["lost", "changed", "ended"],
)
def test_anything_else_is_wrong(observed: History, lost: int, changed: int) -> None:
    """And told."""
    tally = tally_of(observed, kills=(killed(ProcessKind.ENGINE_CORE),))
    assert (tally.exact, tally.wrong, tally.severed) == (0, 1, 0)
    assert (tally.lost_tokens, tally.changed_tokens) == (lost, changed)
    assert tally.problems


def test_an_answer_whose_api_server_was_killed_is_counted_apart() -> None:
    """Nobody was left to answer."""
    tally = tally_of(answer([1, 2], error="peer closed connection"), kills=(killed(),))
    assert (tally.exact, tally.wrong, tally.severed, tally.problems) == (0, 0, 1, [])


def test_what_it_was_told_before_must_be_right() -> None:
    """A wrong token is no broken connection."""
    tally = tally_of(answer([1, 9], error="peer closed connection"), kills=(killed(),))
    assert (tally.wrong, tally.severed) == (1, 1)
    assert tally.problems == ["one: wrong tokens before the end of its connection"]


@pytest.mark.parametrize(
    ("observed", "kill", "severed"),
    [
        (answer([1], error="x"), killed(ports=(8,)), False),
        (answer([1], error="x"), killed(ProcessKind.WORKER), False),
        (answer([], port=None, error="x"), killed(), True),
        (answer([1], error="x"), killed(at_s=-9.0), False),
    ],
    ids=["another's connection", "a worker", "not answered yet", "sent later"],
)
def test_only_its_own_connections_may_end(observed: History, kill: Kill, severed: bool) -> None:
    """The client's port says whose it was."""
    assert kill.severed(observed) is severed


def test_what_is_told_is_bounded() -> None:
    """All are counted."""
    tally = Tally([answer([1])])
    for _ in range(MAX_PROBLEMS + 5):
        tally.add([answer([2])], [])
    assert (len(tally.problems), tally.wrong) == (MAX_PROBLEMS, MAX_PROBLEMS + 5)


def test_an_unseeded_answer_that_ended_with_its_api_server_has_no_twin_to_differ_from() -> None:
    cut_off = answer([9, 9], error="connection reset")
    cut_off.is_unseeded = True
    tally = tally_of(cut_off, kills=(killed(),))
    assert (tally.severed, tally.wrong) == (1, 0)
