from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from holdfast.api.formats import EventsPage
from holdfast.cli.client import REFUSED, UNREACHABLE, ClientFailure
from holdfast.cli.events import MAX_PAUSE_S, POLL_INTERVAL_S, follow_events
from support.control_plane import MemoryControl

LOST = ClientFailure("cannot reach it", UNREACHABLE, passing=True)
REFUSAL = ClientFailure("the token is wrong", REFUSED)


class Server:
    """Answers with what a test lays out, in order; remembers what it was asked and how long was waited."""

    def __init__(self, *answers: EventsPage | ClientFailure) -> None:
        self._answers: Iterator[EventsPage | ClientFailure] = iter(answers)
        self.asked: list[int] = []
        self.pauses: list[float] = []
        self.said: list[ClientFailure] = []

    def fetch(self, after: int) -> EventsPage:
        self.asked.append(after)
        answer = next(self._answers, REFUSAL)
        if isinstance(answer, ClientFailure):
            raise answer
        return answer

    def follow(self) -> list[int]:
        """The sequence numbers that a follower sees until the answers end."""
        seen: list[int] = []
        with contextlib.suppress(ClientFailure):
            for event in follow_events(self.fetch, 0, self.pauses.append, self.said.append):
                seen.append(event.sequence)
        return seen


@pytest.fixture
def page() -> Callable[..., EventsPage]:
    events = MemoryControl().attach().break_down().events

    def make(*sequences: int, following: int | None = None) -> EventsPage:
        chosen = tuple(e for e in events if e.sequence in sequences)
        return EventsPage(events=chosen, next=following if following is not None else sequences[-1])

    return make


def test_each_event_is_seen_once(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1, 2), page(following=2), page(3, 4))
    assert server.follow() == [1, 2, 3, 4]
    assert server.asked == [0, 2, 2, 4]
    assert server.pauses == [POLL_INTERVAL_S] * 3


def test_a_lost_server_is_asked_ever_more_slowly_up_to_a_bound(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1), *[LOST] * 8)
    server.follow()
    assert all(b >= a for a, b in itertools.pairwise(server.pauses))
    assert server.pauses[-1] == MAX_PAUSE_S


def test_a_loss_is_told_once_and_the_pace_returns_with_the_server(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1), LOST, LOST, page(2), page(following=2))
    assert server.follow() == [1, 2]
    assert server.said == [LOST]
    assert server.pauses[-1] == POLL_INTERVAL_S


def test_a_new_server_is_followed_from_its_first_event(page: Callable[..., EventsPage]) -> None:
    server = Server(page(3, 4), LOST, page(following=1), page(1))
    assert server.follow() == [3, 4, 1]
    assert server.asked[-2:] == [0, 1]


def test_a_server_that_was_never_there_is_not_waited_for() -> None:
    server = Server(LOST)
    assert server.follow() == []
    assert server.pauses == []


def test_a_refused_request_ends_the_following(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1), REFUSAL, page(2))
    assert server.follow() == [1]
