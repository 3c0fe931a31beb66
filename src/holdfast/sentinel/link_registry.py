"""The front-end links of one instance, served by its ClientSentinel on the same hub as the engine cores.

Runs on the sentinel's thread. It repeats the events of the sentinel and forwards commands; it decides
nothing and never waits for a link.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from holdfast.core.ports import ControlPlane
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol.events import Event, InstanceView
from holdfast.sentinel.forwarded_incidents import IncidentsForLinks, Post
from holdfast.sentinel.refused import RefusedMessages
from holdfast.sentinel.thread import link_identity
from holdfast.wire import Hub

logger = logging.getLogger("holdfast")

EVENTS_PER_MESSAGE = 32  # of the longest events, still under the bound of a frame
MAX_GONE = 8  # processes of a link that are remembered after their end
MAX_ENDED = 256  # submissions of links that are remembered after their end


def _at_once(call: Callable[[], None]) -> None:
    call()


class LinkRegistry:
    """Registry of the links of the instance's API servers; foreign links are not served.

    Args:
        post: runs a call on the sentinel's thread.
    """

    def __init__(self, hub: Hub, control: ControlPlane, refused: RefusedMessages, post: Post = _at_once) -> None:
        self._hub = hub
        self._refused = refused
        self._control = control
        self._expected: dict[bytes, int] = {}
        self._seen: dict[int, lm.LinkReported] = {}
        self._gone: dict[int, deque[int]] = {}  # the latest processes of each link that are gone
        self._under_way: set[str] = set()
        self._ended: dict[str, lm.Settled] = {}  # the latest, in case a submission arrives twice
        self._on_report: Callable[[], None] = lambda: None
        self._incidents = IncidentsForLinks(control, post)

    # ---- any thread

    def expect(self, count: int, on_report: Callable[[], None]) -> None:
        """Serve links 0 to `count` - 1. Before the sentinel's thread starts."""
        self._expected = {link_identity(i): i for i in range(count)}
        self._on_report = on_report

    def missing(self) -> list[int]:
        """Return the links that have never reported."""
        return [i for i in self._expected.values() if i not in self._seen]

    def reports(self) -> tuple[lm.LinkReported, ...]:
        return tuple(self._seen.values())

    def behind(self, sequence: int) -> list[int]:
        """Return the links that have reported and have not seen an event."""
        return [r.link_id for r in self.reports() if r.sequence < sequence]

    # ---- the sentinel's thread

    def forget(self, link_id: int, pid: int | None) -> None:
        """Forget the link of a lost API server; late reports of the process have no effect."""
        gone = self._gone.setdefault(link_id, deque(maxlen=MAX_GONE))
        if pid is not None:
            gone.append(pid)
        report = self._seen.get(link_id)
        if report is not None and pid in (None, report.pid):
            gone.append(report.pid)
            del self._seen[link_id]
            self._on_report()

    def publish(self, event: Event, view: InstanceView) -> None:
        """Send an event to every link. A link that misses an event notices the gap and asks."""
        if self._seen:
            data = lm.encode(lm.Published(event=event, view=view))
            for link_id in self._seen:
                self._hub.send(link_identity(link_id), data)

    def deliver(self, peer: bytes, data: bytes) -> None:
        """Take a message of a link. Raises `Undecodable`."""
        link_id = self._expected.get(peer)
        message = lm.decode_from_link(data)
        if link_id is None or (isinstance(message, lm.LinkReported) and message.link_id != link_id):
            self._refused.note(f"{peer!r} is none of the links of this instance")
        elif isinstance(message, lm.LinkReported):
            self._take_report(message)
        elif isinstance(message, lm.PoisonRequestEnded):
            self._control.poison_request_ended(message)
        elif isinstance(message, (lm.GuiltReported, lm.RequestsRefused)):
            self._control.tell_of_guilt(message)
        elif isinstance(message, lm.IncidentsAsked):
            self._incidents.take(message, functools.partial(self._send, peer))
        elif (ended := self._ended.get(message.submission)) is not None:
            self._send(peer, ended)
        elif message.submission not in self._under_way:
            self._submit(peer, message)

    def _take_report(self, report: lm.LinkReported) -> None:
        if report.pid in self._gone.get(report.link_id, ()):
            return
        self._seen[report.link_id] = report
        self._on_report()
        view = self._control.view()
        if report.sequence < view.sequence:
            after = report.sequence
            for events in _portions(self._control.history(after)):
                self._send(link_identity(report.link_id), lm.Past(events=events, after=after))
                after = events[-1].sequence
        self._send(link_identity(report.link_id), lm.Present(view=view))

    def _submit(self, peer: bytes, submitted: lm.Submitted) -> None:
        """Submit a command; the control plane knows whether a caller repeats the command."""
        self._under_way.add(submitted.submission)
        ended = self._control.submit(submitted.command)
        ended.add_done_callback(lambda ended: self._settle(peer, submitted.submission, ended))

    def _settle(self, peer: bytes, submission: str, ended: Future[None]) -> None:
        self._under_way.discard(submission)
        error = ended.exception()
        told = None if error is None else lm.describe(error)
        settled = self._ended[submission] = lm.Settled(submission=submission, error=told)
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self._send(peer, settled)

    def _send(self, peer: bytes, message: lm.ToLink) -> None:
        # Bounded elsewhere: a link that is not told asks again, and its commands end in their deadlines.
        if not self._hub.send(peer, lm.encode(message)):
            logger.warning("ClientSentinel: %s takes no message", peer.decode())


def _portions(events: Sequence[Event]) -> Iterator[tuple[Event, ...]]:
    for start in range(0, len(events), EVENTS_PER_MESSAGE):
        yield tuple(events[start : start + EVENTS_PER_MESSAGE])
