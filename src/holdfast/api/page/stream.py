"""The stream of server-sent events: what changed in the status, and the events, once each.

A message holds only engines that changed since the message before; the first holds all. Its id names the instance and
the last event, so that a browser that reconnects, also to another API server, goes on where it was.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from holdfast.api import formats
from holdfast.api.requests import INSTANCE_ID, MAX_SEQUENCE
from holdfast.core.ports import ControlPlane
from holdfast.core.protocol.events import EngineStatus, Event, InstanceView

MAX_STREAMS = 32  # of an API server
LOOK_S = 0.2
STATUS_S = 1.0  # between two messages about the status
HEARTBEAT_S = 10.0

_ID = re.compile(f"({INSTANCE_ID}):([0-9]{{1,{len(str(MAX_SEQUENCE))}}})")


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """Message of the stream. `status` holds the engines that changed; `restarted`: forget all earlier events."""

    status: formats.Status | None
    events: tuple[Event, ...] = ()
    restarted: bool = False
    now: float  # the server's clock


def parse_event_id(text: str | None) -> tuple[str | None, int]:
    """Return the instance and the sequence number of `Last-Event-ID`; the beginning for anything else."""
    found = _ID.fullmatch(text or "")
    return (found[1], int(found[2])) if found else (None, 0)


class Counter(Protocol):
    """Counts the open streams."""

    streams: int


class Following:
    """One reader of the stream. `next_message` returns what is new, None while nothing is."""

    def __init__(self, control: ControlPlane, instance_id: str | None, after: int) -> None:
        self._control = control
        self._after = after
        self._instance_id = instance_id
        self._shown: InstanceView | None = None
        self._engines: dict[int, EngineStatus] = {}
        self._told_at = float("-inf")
        self._status_at = float("-inf")

    def next_message(self, now: float, wall: float) -> bytes | None:
        """Return the next message in the format of server-sent events; `now` is of a steady clock."""
        view = self._control.view()
        restarted = self._instance_id not in (None, view.instance_id)
        if restarted or self._after > view.sequence:
            self._after = 0
        self._instance_id = view.instance_id
        status = self._changes(view, now)
        events = self._control.history(self._after) if view.sequence > self._after else ()
        if status is None and not events:
            return self._heartbeat(now)
        self._after = events[-1].sequence if events else self._after
        self._told_at = now
        update = Update(status=status, events=tuple(events), restarted=restarted, now=wall)
        data = msgspec.json.encode(update)
        return b"id: %s:%d\ndata: %s\n\n" % (view.instance_id.encode(), self._after, data)

    def _changes(self, view: InstanceView, now: float) -> formats.Status | None:
        if view is self._shown or now - self._status_at < STATUS_S:
            return None
        self._shown, self._status_at = view, now
        engines = {e.engine_id: msgspec.structs.replace(e, hooks=(), worker_hooks=()) for e in view.engines}
        changed = tuple(e for i, e in engines.items() if self._engines.get(i) != e)
        self._engines = engines
        return msgspec.structs.replace(formats.render_status(view), engines=changed)

    def _heartbeat(self, now: float) -> bytes | None:
        if now - self._told_at < HEARTBEAT_S:
            return None
        self._told_at = now
        return b"event: alive\ndata: {}\n\n"  # not a comment: a page cannot see comments


async def follow(
    control: ControlPlane,
    place: tuple[str | None, int],
    expires_at: float,
    counter: Counter,
    is_ending: Callable[[], bool],
) -> AsyncIterator[bytes]:
    """Yield messages until the session of the reader ends, or the server; `place` is what `parse_event_id` returns."""
    following = Following(control, *place)
    counter.streams += 1
    try:
        yield b"retry: 1000\n\n"
        while time.time() < expires_at and not is_ending():
            if (message := following.next_message(time.monotonic(), time.time())) is not None:
                yield message
            await asyncio.sleep(LOOK_S)
        if time.time() >= expires_at:
            yield b"event: expired\ndata: {}\n\n"
    finally:
        counter.streams -= 1
