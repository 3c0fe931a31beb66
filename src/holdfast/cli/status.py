"""`holdfast status`: the engines of a running server."""

from __future__ import annotations

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.api.formats import EngineStatus, Status
from holdfast.cli.client import ControlClient, printable, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, AsJson, Url

_COLOURS = {"healthy": "green", "unhealthy": "yellow", "dead": "red"}


def status(url: Url = DEFAULT_URL, api_key: ApiKey = "", as_json: AsJson = False) -> None:
    """Show the state of a running server's engines."""
    with reporting():
        found = ControlClient(url, api_key).get("status", Status)
    if as_json:
        typer.echo(msgspec.json.encode(found))
        return
    console = Console()
    console.print(_table(found))
    console.print(Text(_summary(found)))


def _table(found: Status) -> Table:
    table = Table()
    for title in ("engine", "status", "state", "epoch", "ranks", "pid", "faults", "recoveries", "about"):
        table.add_column(title)
    for engine in found.engines:
        table.add_row(*_row(engine))
    return table


def _row(engine: EngineStatus) -> list[Text]:
    about = engine.fault_info or engine.reason or engine.ft_error or ""
    pid = "–" if engine.pid is None else str(engine.pid)
    counts = (engine.epoch, engine.ranks, pid, engine.faults, engine.recoveries)
    return [
        Text(str(engine.id)),
        Text(printable(engine.status), style=_COLOURS.get(engine.status, "")),
        Text(engine.state),
        *(Text(str(count)) for count in counts),
        Text(printable(about)),
    ]


def _summary(found: Status) -> str:
    if found.defeat:
        return f"defeated: {printable(found.defeat)}"
    ready = "ready" if found.ready else "not ready"
    return (
        f"{ready} · policy {found.policy} · {found.sequence} events · notifies at {found.notify_address or 'no port'}"
    )
