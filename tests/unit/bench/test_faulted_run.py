"""A run's judgement: it is lawful only when everything that can be asked was asked and answered well."""

from __future__ import annotations

import pytest

from holdfast.bench.faulted_run import EndedAlone, judge
from holdfast.chaos.history import History
from holdfast.chaos.streams import Load, StreamSpec
from support.incidents import Event, event, incident, loss


def answer(
    tokens: list[int], *, gap_s: float = 0.01, begin_s: float = 0.0, name: str = "one", engine_id: int | None = None
) -> History:
    arrivals = [begin_s + gap_s * (n + 1) for n in range(len(tokens))]
    return History(name, begin_s, tokens, arrivals, finish_reason="length", engine_id=engine_id)


def load_with(*histories: History) -> Load:
    load = Load("http://127.0.0.1:1", [StreamSpec(one.name, "say") for one in histories])
    for empty, history in zip(load.histories, histories, strict=True):
        empty.__dict__.update(history.__dict__)
    return load


def test_equal_tokens_and_a_reported_recovery_are_lawful() -> None:
    """A run with its tokens, its fault and its recovery has no problem."""
    run = load_with(answer([1, 2, 3, 4], gap_s=0.5))
    result = judge([answer([1, 2, 3, 4])], run, incident(0.6, 0.7), [])
    assert result.problems == ()
    assert result.waits_s() == [0.5]


def test_a_fault_that_never_came_proves_nothing() -> None:
    """Equal tokens without a fault are no success."""
    result = judge([answer([1, 2])], load_with(answer([1, 2])), [], [])
    assert result.problems == ("no fault was reported", "no recovery was reported")
    assert result.waits_s() == []


def test_what_only_takes_longer_is_to_be_taken_for_no_fault() -> None:
    run = load_with(answer([1, 2, 3, 4], gap_s=0.5))
    assert judge([answer([1, 2, 3, 4])], run, [], [], is_fault=False).problems == ()
    accused = judge([answer([1, 2, 3, 4])], run, incident(0.6, 0.7), [], is_fault=False)
    assert accused.problems == ("no fault, but reported: fault-reported",)


def test_what_was_wrong_before_stays_wrong() -> None:
    """Problems known already are kept."""
    result = judge([answer([1])], load_with(answer([1])), incident(0.0, 0.1), ["spoilt"])
    assert result.problems == ("spoilt",)


def test_a_changed_token_is_a_problem() -> None:
    """The checker's reasons are problems of the run."""
    result = judge([answer([1, 2])], load_with(answer([1, 9])), incident(0.0, 0.1), [])
    assert not result.lawful
    assert result.comparison.changed == 1


TOKENS = [1, 2, 3, 4, 5]
REFERENCE = [answer(TOKENS, name="hurt", engine_id=0), answer(TOKENS, name="spared", engine_id=1, gap_s=0.2)]


def test_streams_of_an_independent_engine_are_neighbours_and_not_interrupted() -> None:
    """They have no interruption; what they felt is held against the same streams without a fault."""
    run = load_with(
        answer(TOKENS, name="hurt", engine_id=0, gap_s=0.5),
        answer(TOKENS, name="spared", engine_id=1, gap_s=0.1, begin_s=0.4),
    )
    result = judge(REFERENCE, run, incident(0.6, 0.7), [])
    assert result.interruptions_s == {"hurt": 0.5, "spared": None}
    assert result.neighbours is not None
    assert result.neighbours.streams == 1
    assert abs(result.neighbours.longest_gap_s - 0.1) < 1e-9
    assert abs(result.neighbours.fault_free_p999_s - 0.2) < 1e-9
    assert result.neighbours.undisturbed


def test_a_neighbour_that_waited_longer_than_ever_was_disturbed() -> None:
    """What 99.9 % of its gaps do not exceed without a fault is the measure."""
    hurt = answer(TOKENS, name="hurt", engine_id=0, gap_s=0.5)
    run = load_with(hurt, answer(TOKENS, name="spared", engine_id=1, gap_s=0.4))
    neighbours = judge(REFERENCE, run, incident(0.6, 0.7), []).neighbours
    assert neighbours is not None
    assert not neighbours.undisturbed


def test_a_neighbour_that_had_ended_before_says_nothing() -> None:
    """Only gaps that touch the incident count: without one nothing was measured."""
    run = load_with(*REFERENCE)
    assert judge(REFERENCE, run, incident(90.0, 91.0), []).neighbours is None


def test_a_paused_peer_is_no_neighbour() -> None:
    """Its streams were interrupted like those of the engine that failed."""
    run = load_with(
        *(answer(TOKENS, name=name, engine_id=one, gap_s=0.5) for one, name in enumerate(("hurt", "spared")))
    )
    peer = [event("engine-paused", 0.6, 1), event("engine-recovered", 0.7, 1)]
    result = judge(REFERENCE, run, [*incident(0.6, 0.7), *peer], [])
    assert result.neighbours is None
    assert result.waits_s() == [0.5, 0.5]


def test_streams_that_the_server_placed_share_one_window() -> None:
    """When the engine of a stream is unknown, every stream counts as touched."""
    result = judge([answer([1, 2])], load_with(answer([1, 2], gap_s=0.5)), incident(0.6, 0.7), [])
    assert result.waits_s() == [0.5]
    assert result.neighbours is None


def test_streams_that_moved_and_those_beside_are_measured_around_the_loss() -> None:
    """What the start of another process costs the neighbours is told apart."""
    run = load_with(
        answer(TOKENS, name="hurt", engine_id=0, gap_s=0.5),
        answer([*TOKENS, 6], name="spared", engine_id=1, gap_s=0.1, begin_s=0.4),
    )
    run.histories[1].arrivals_s[-1] = 9.0
    result = judge(REFERENCE, run, loss(0.6, 20.0, 0), [])
    assert result.interruptions_s == {"hurt": 0.5, "spared": None}
    assert result.neighbours is not None
    assert result.neighbours.longest_gap_s > 8.0  # it touches the move
    run.histories[1].arrivals_s[:] = [0.5, 0.6, 0.7, 1.4, 1.8, 9.0]
    neighbours = judge(REFERENCE, run, loss(0.6, 20.0, 0), []).neighbours
    assert neighbours is not None
    assert abs(neighbours.longest_gap_s - 0.7) < 1e-9
    assert neighbours.restart_gap_s is not None
    assert abs(neighbours.restart_gap_s - 7.2) < 1e-9


# ---- a request that makes the server fail

POISON = "poison-1-"
TWO = [answer(TOKENS, name="one"), answer(TOKENS, name="two")]
FOUND = [*incident(0.01, 0.02), event("decision-made", 0.02), event("request-ended", 0.03, incident="7f")]


def poisoned_run(tokens: list[int], error: str | None) -> Load:
    """Of two answers the second one is to the poison request."""
    load = Load("http://127.0.0.1:1", [StreamSpec("one", "say"), StreamSpec("two", "say", request_id=POISON)])
    good, poison = answer(TOKENS, name="one"), answer(tokens, name="two")
    poison.error, poison.finish_reason = error, None
    for empty, history in zip(load.histories, (good, poison), strict=True):
        empty.__dict__.update(history.__dict__)
    return load


def test_a_request_that_makes_the_server_fail_ends_alone() -> None:
    run = poisoned_run([1, 2], "it was ended (incident 7f)")
    result = judge(TWO, run, FOUND, [], poison=POISON)
    assert result.problems == ()
    assert result.ended_alone == (EndedAlone("two", 2, 5, "it was ended (incident 7f)"),)
    assert (result.faults, [stream.name for stream in result.comparison.streams]) == (1, ["one"])


@pytest.mark.parametrize(
    ("tokens", "error", "events", "problem"),
    [
        (TOKENS, None, FOUND, "two: poison request, but its client was told nothing"),
        ([1, 2], "no end within 180 s", FOUND, "two: poison request, but its client was told no end within 180 s"),
        ([1, 9], "incident 7f", FOUND, "two: tokens differ before the end of the request"),
        ([1, 2], "incident 7f", [*FOUND, event("request-ended", 0.04, incident="8a")], "2 requests were reported as"),
    ],
    ids=["finished", "another error", "other tokens", "an innocent one as well"],
)
def test_every_other_end_of_it_is_a_problem(
    tokens: list[int], error: str | None, events: list[Event], problem: str
) -> None:
    [told] = judge(TWO, poisoned_run(tokens, error), events, [], poison=POISON).problems
    assert told.startswith(problem)
