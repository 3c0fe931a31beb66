from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest

from holdfast.api.formats import EventsPage
from holdfast.cli.client import REFUSED, UNREACHABLE, ClientFailure, ControlClient
from holdfast.client.following import MAX_PAUSE_S, POLL_INTERVAL_S, Place, follow_events
from holdfast.core.protocol.events import Event
from support.control_plane import MemoryControl
from support.live_server import LiveServer

LOST = ClientFailure("cannot reach it", UNREACHABLE, passing=True)
REFUSAL = ClientFailure("the token is wrong", REFUSED)


class Server:
    """Answers with what a test lays out, in order; remembers what it was asked and how long was waited."""

    def __init__(self, *answers: EventsPage | ClientFailure) -> None:
        self._answers: Iterator[EventsPage | ClientFailure] = iter(answers)
        self.asked: list[Place] = []
        self.pauses: list[float] = []
        self.said: list[ClientFailure] = []

    def fetch(self, place: Place) -> EventsPage:
        self.asked.append(place)
        answer = next(self._answers, REFUSAL)
        if isinstance(answer, ClientFailure):
            raise answer
        return answer

    def follow(self) -> list[int]:
        """The sequence numbers that a follower sees until the answers end."""
        seen: list[int] = []
        with contextlib.suppress(ClientFailure):
            for event in follow_events(self.fetch, Place(), self.pauses.append, self.said.append):
                seen.append(event.sequence)
        return seen


@pytest.fixture
def page() -> Callable[..., EventsPage]:
    events = MemoryControl().attach().break_down().events

    def make(*sequences: int, following: int | None = None, life: str = "first") -> EventsPage:
        chosen = tuple(e for e in events if e.sequence in sequences)
        return EventsPage(instance_id=life, events=chosen, next=following if following is not None else sequences[-1])

    return make


def test_each_event_is_seen_once(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1, 2), page(following=2), page(3, 4))
    assert server.follow() == [1, 2, 3, 4]
    assert server.asked == [Place(), Place(2, "first"), Place(2, "first"), Place(4, "first")]
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
    server = Server(page(1, 2), LOST, page(1, 2, 3, life="second"), page(following=3, life="second"))
    assert server.follow() == [1, 2, 1, 2, 3]
    assert server.asked[2:] == [Place(2, "first"), Place(3, "second"), Place(3, "second")]


def test_no_event_of_a_restarted_server_is_skipped(server: LiveServer) -> None:
    """The second life has more events than the first: their numbers alone would hide its first ones."""
    client = ControlClient(server.open_url)
    lives = iter([MemoryControl().attach().break_down()])
    seen: list[Event] = []

    def fetch(place: Place) -> EventsPage:
        named = {"instance_id": place.instance_id} if place.instance_id else {}
        return client.get("events", EventsPage, after=place.after, **named)

    def pause(_: float) -> None:
        server.control = next(lives)

    with contextlib.suppress(RuntimeError):  # the last pause finds no further life
        for event in follow_events(fetch, Place(), pause, lambda failure: None):
            seen.append(event)
    assert [e.sequence for e in seen] == [1, 1, 2, 3, 4]
    assert len({e.instance_id for e in seen}) == 2


def test_a_server_that_was_never_there_is_not_waited_for() -> None:
    server = Server(LOST)
    assert server.follow() == []
    assert server.pauses == []


def test_a_refused_request_ends_the_following(page: Callable[..., EventsPage]) -> None:
    server = Server(page(1), REFUSAL, page(2))
    assert server.follow() == [1]
