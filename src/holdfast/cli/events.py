"""`holdfast events`: past events of a running server, and new events as they happen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Place:
    """Place in the events of an instance: after a sequence number. Without an instance, of the one that answers."""

    after: int = 0
    instance_id: str = ""


Fetch = Callable[[Place], EventsPage]


def events(
    after: Annotated[
        int, typer.Option(min=0, max=MAX_SEQUENCE, help="Only events with a greater sequence number.")
    ] = 0,
    instance_id: Annotated[
        str, typer.Option(help="Instance of the sequence number; the events of another one are shown from the first.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until interrupted.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show the events of a running server, a line per event (with --json an object per line)."""
    show = _show_json if as_json else _show_line
    with reporting(), contextlib.suppress(KeyboardInterrupt):
        client = ControlClient(url, api_key)

        def fetch(place: Place) -> EventsPage:
            named = {"instance_id": place.instance_id} if place.instance_id else {}
            page = client.get("events", EventsPage, after=place.after, **named)
            if page.restarted:
                typer.echo("holdfast: the server was restarted; its events count from 1 again", err=True)
            return page

        place = Place(after, instance_id)
        found = follow_events(fetch, place, time.sleep, _say_lost) if follow else fetch(place).events
        for event in found:
            show(event)


def follow_events(
    fetch: Fetch, place: Place, pause: Callable[[float], None], say_lost: Callable[[ClientFailure], None]
) -> Iterator[Event]:
    """Yield all events after a place as they happen, of a restarted server from the first.

    Retry a lost server with growing pauses. Raises `ClientFailure` when a retry cannot help, or when the server was
    never reached.
    """
    page = fetch(place)
    pause_s = POLL_INTERVAL_S
    while True:
        yield from page.events
        place = Place(page.next, page.instance_id)
        pause(pause_s)
        try:
            page = fetch(place)
            pause_s = POLL_INTERVAL_S
        except ClientFailure as failure:
            if not failure.passing:
                raise
            if pause_s == POLL_INTERVAL_S:
                say_lost(failure)
            page = EventsPage(instance_id=place.instance_id, events=(), next=place.after)
            pause_s = min(pause_s * 2, MAX_PAUSE_S)


def _show_json(event: Event) -> None:
    typer.echo(msgspec.json.encode(event))


def _show_line(event: Event) -> None:
    at = datetime.fromtimestamp(event.at).strftime("%H:%M:%S.%f")[:-3]
    typer.echo(f"{event.sequence:>5}  {at}  {printable(describe_event(event))}")


def _say_lost(failure: ClientFailure) -> None:
    typer.echo(f"holdfast: {printable(str(failure))}; trying again", err=True)
