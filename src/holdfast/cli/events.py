"""`holdfast events`: past events of a running server, and new events as they happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from holdfast.api.formats import EventsPage, describe_event
from holdfast.api.requests import MAX_SEQUENCE
from holdfast.cli.client import ClientFailure, ControlClient, printable, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, AsJson, Url
from holdfast.core.protocol.events import Event

POLL_INTERVAL_S = 0.5
MAX_PAUSE_S = 10.0

Fetch = Callable[[int], EventsPage]


def events(
    after: Annotated[
        int, typer.Option(min=0, max=MAX_SEQUENCE, help="Only events with a greater sequence number.")
    ] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until interrupted.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show the events of a running server, a line per event (with --json an object per line)."""
    show = _show_json if as_json else _show_line
    with reporting(), contextlib.suppress(KeyboardInterrupt):
        client = ControlClient(url, api_key)

        def fetch(sequence: int) -> EventsPage:
            return client.get("events", EventsPage, after=sequence)

        found = follow_events(fetch, after, time.sleep, _say_lost) if follow else fetch(after).events
        for event in found:
            show(event)


def follow_events(
    fetch: Fetch, after: int, pause: Callable[[float], None], say_lost: Callable[[ClientFailure], None]
) -> Iterator[Event]:
    """Yield all events after a sequence number as they happen; retry a lost server with growing pauses.

    Raises `ClientFailure` when a retry cannot help, or when the server was never reached.
    """
    page = fetch(after)
    pause_s = POLL_INTERVAL_S
    while True:
        yield from page.events
        # `next` is smaller than before: the server was restarted and counts from 1.
        after = page.next if page.next >= after else 0
        pause(pause_s)
        try:
            page = fetch(after)
            pause_s = POLL_INTERVAL_S
        except ClientFailure as failure:
            if not failure.passing:
                raise
            if pause_s == POLL_INTERVAL_S:
                say_lost(failure)
            page = EventsPage(events=(), next=after)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)


def _show_json(event: Event) -> None:
    typer.echo(msgspec.json.encode(event))


def _show_line(event: Event) -> None:
    at = datetime.fromtimestamp(event.at).strftime("%H:%M:%S.%f")[:-3]
    typer.echo(f"{event.sequence:>5}  {at}  {printable(describe_event(event))}")


def _say_lost(failure: ClientFailure) -> None:
    typer.echo(f"holdfast: {printable(str(failure))}; trying again", err=True)
