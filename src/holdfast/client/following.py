"""The events of a server without a gap: over lost connections, and from the first after a restart of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.api.formats import EventsPage
from holdfast.client.calls import ClientFailure
from holdfast.core.protocol.events import Event

POLL_INTERVAL_S = 0.5
MAX_PAUSE_S = 10.0


@dataclass(frozen=True)
class Place:
    """Place in the events of an instance: after a sequence number. Without an instance, of the one that answers."""

    after: int = 0
    instance_id: str = ""

    @property
    def query(self) -> dict[str, int | str]:
        named: dict[str, int | str] = {"instance_id": self.instance_id} if self.instance_id else {}
        return {"after": self.after, **named}


@dataclass
class Follower:
    """State of a follower: the present place, and the pause before the next question. Asks nothing itself."""

    place: Place = field(default_factory=Place)
    pause_s: float = 0.0
    failure: ClientFailure | None = None  # since the server was lost

    def take(self, page: EventsPage) -> tuple[Event, ...]:
        """Take an answer; return its events."""
        self.place, self.pause_s, self.failure = Place(page.next, page.instance_id), POLL_INTERVAL_S, None
        return page.events

    def fail(self, failure: ClientFailure) -> bool:
        """Take a failure; return whether it is the first. Raises the failure when a retry cannot help."""
        if not failure.passing:
            raise failure
        is_first, self.failure = self.failure is None, failure
        self.pause_s = min(self.pause_s * 2, MAX_PAUSE_S)
        return is_first


def follow_events(
    fetch: Callable[[Place], EventsPage],
    place: Place,
    pause: Callable[[float], None],
    say_lost: Callable[[ClientFailure], None],
) -> Iterator[Event]:
    """Yield all events after a place as they happen, of a restarted server from the first.

    Retry a lost server with growing pauses. Raises `ClientFailure` when a retry cannot help, or when the server was
    never reached.
    """
    follower = Follower(place)
    yield from follower.take(fetch(place))
    while True:
        pause(follower.pause_s)
        try:
            page = fetch(follower.place)
        except ClientFailure as failure:
            if follower.fail(failure):
                say_lost(failure)
            continue
        yield from follower.take(page)
