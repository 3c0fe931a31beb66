"""`holdfast events`: past events of a running server, and new events as they happen."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from holdfast.api.formats import EventsPage, describe_event
from holdfast.api.requests import MAX_SEQUENCE
from holdfast.cli.client import ClientFailure, ControlClient, printable, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, AsJson, EnginesShown, Url
from holdfast.client.following import Place, follow_events
from holdfast.core.protocol.events import Event


def events(
    after: Annotated[
        int, typer.Option(min=0, max=MAX_SEQUENCE, help="Only events with a greater sequence number.")
    ] = 0,
    instance_id: Annotated[
        str, typer.Option(help="Instance of the sequence number; the events of another one are shown from the first.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until interrupted.")] = False,
    engine: EnginesShown = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    as_json: AsJson = False,
) -> None:
    """Show the events of a running server, a line per event (with --json an object per line)."""
    show = _show_json if as_json else _show_line
    with reporting(), contextlib.suppress(KeyboardInterrupt):
        client = ControlClient(url, api_key)

        def fetch(place: Place) -> EventsPage:
            page = client.events(place)
            if page.restarted:
                typer.echo("holdfast: the server was restarted; its events count from 1 again", err=True)
            return page

        place = Place(after, instance_id)
        found = follow_events(fetch, place, time.sleep, _say_lost) if follow else fetch(place).events
        for event in found:
            if not engine or event.engine_id in engine:
                show(event)


def _show_json(event: Event) -> None:
    typer.echo(msgspec.json.encode(event))


def _show_line(event: Event) -> None:
    at = datetime.fromtimestamp(event.at).strftime("%H:%M:%S.%f")[:-3]
    typer.echo(f"{event.sequence:>5}  {at}  {printable(describe_event(event))}")


def _say_lost(failure: ClientFailure) -> None:
    typer.echo(f"holdfast: {printable(str(failure))}; trying again", err=True)
