"""`holdfast incidents`: the incidents of a running server, or of a folder where the server has ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.client import REFUSED, UNREACHABLE, ClientFailure, ControlClient, printable, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, AsJson, Url
from holdfast.core.errors import UnknownIncident
from holdfast.core.protocol.incidents import (
    TAR_SUFFIX,
    Incident,
    IncidentsPage,
    StoredIncident,
    is_incident_id,
)
from holdfast.sentinel.incident_store import IncidentStore

T = TypeVar("T")

app = typer.Typer(
    name="incidents",
    help="Show what broke, what was decided and what it cost: the incidents of a running server, or of a folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        help="Read this folder instead of asking a server: that of --incident-dir, or DEFAULT for its default.",
    ),
]
IncidentId = Annotated[str, typer.Argument(help="Id of an incident, or the name that a client was told.")]


class Incidents:
    """The incidents of a server at a URL, or of a folder. Raises `ClientFailure` and nothing else."""

    def __init__(self, url: str, api_key: str, folder: Path | None) -> None:
        self._client = None if folder is not None else ControlClient(url, api_key)
        self._store = IncidentStore("" if folder is None or str(folder) == "DEFAULT" else str(folder))

    def page(self) -> IncidentsPage:
        return self._ask("", lambda asked, client: client.get(f"incidents{asked}", IncidentsPage), IncidentsPage)

    def show(self, incident_id: str) -> StoredIncident:
        return self._ask(_named(incident_id), lambda asked, client: client.get(asked, StoredIncident), StoredIncident)

    def tar(self, incident_id: str) -> bytes:
        _named(incident_id)
        if self._client is not None:
            return self._client.fetch(f"incidents/{incident_id}{TAR_SUFFIX}")
        return self._answer(incident_id + TAR_SUFFIX)

    def _ask(self, path: str, fetch: Callable[[str, ControlClient], T], kind: type[T]) -> T:
        if self._client is None:
            return msgspec.json.decode(self._answer(path.removeprefix("incidents/")), type=kind)
        try:
            return fetch(path, self._client)
        except ClientFailure as failure:
            if failure.exit_code == UNREACHABLE and failure.passing:
                message = (
                    f"{failure}; `holdfast incidents list --folder DEFAULT` reads those of a server that has ended"
                )
                raise ClientFailure(message, UNREACHABLE) from None
            raise

    def _answer(self, asked: str) -> bytes:
        try:
            return self._store.answer(asked)
        except UnknownIncident as error:
            raise ClientFailure(str(error), REFUSED) from None


def _named(incident_id: str) -> str:
    if not is_incident_id(incident_id):
        raise typer.BadParameter(f"{incident_id!r} is not the id of an incident: `holdfast incidents list` shows them")
    return f"incidents/{incident_id}"


@app.command(name="list")
def list_incidents(
    url: Url = DEFAULT_URL, api_key: ApiKey = "", folder: Folder = None, as_json: AsJson = False
) -> None:
    """Show the incidents that are kept, newest first."""
    with reporting():
        page = Incidents(url, api_key, folder).page()
    if as_json:
        typer.echo(msgspec.json.encode(page))
        return
    if not page.incidents:
        typer.echo("no incident is kept: nothing has failed, or the oldest were removed")
        return
    table = Table()
    for title in ("incident", "began", "of", "outcome", "repair", "interrupted", "cause"):
        table.add_column(title, overflow="fold" if title == "incident" else None)  # type: ignore[arg-type]
    for each in page.incidents:
        of = each.process or "engine " + ", ".join(map(str, each.engines))
        cells = (each.incident_id, _clock(each.opened_at), of, each.outcome, each.action, _seconds(each.interruption_s))
        table.add_row(*(Text(printable(cell)) for cell in (*cells, each.cause)))
    Console().print(table)
    typer.echo(f"next: holdfast incidents show {page.incidents[0].incident_id}")


@app.command()
def show(
    incident_id: IncidentId,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Show one incident: cause, decisions, cost, and what to do next."""
    with reporting():
        stored = Incidents(url, api_key, folder).show(incident_id)
    if as_json:
        typer.echo(msgspec.json.encode(stored))
        return
    for line in describe_incident(stored.incident):
        typer.echo(printable(line))
    typer.echo(f"files: {', '.join(map(printable, stored.files))}")


@app.command()
def export(
    incident_id: IncidentId,
    to: Annotated[Path | None, typer.Option("--to", help="File to write.  [default: INCIDENT.tar]")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
    folder: Folder = None,
) -> None:
    """Write the files of an incident as a tar, to attach to a report. It holds no prompts and no tokens."""
    target = to or Path(incident_id + TAR_SUFFIX)
    with reporting():
        data = Incidents(url, api_key, folder).tar(incident_id)
        try:
            target.write_bytes(data)
        except OSError as error:
            raise ClientFailure(
                f"cannot write {target}: {error.strerror}; name another file with --to", REFUSED
            ) from None
    typer.echo(f"{target}: {len(data)} bytes")


def describe_incident(incident: Incident) -> list[str]:
    """Return an incident in lines: cause, action, cost, next step, then faults, decisions and the timeline."""
    of = incident.process or "engine " + ", ".join(map(str, incident.engines))
    p = incident.phases
    phases = {"contain": p.contain, "decide": p.decide, "repair": p.repair, "restore": p.restore}
    lines = [
        f"incident {incident.incident_id} of {of}: {incident.outcome}",
        f"cause:   {incident.cause or 'unknown'}",
        f"action:  {incident.action or 'none'}",
        f"cost:    interrupted {_seconds(incident.interruption_s)}; {incident.requests_rewound} requests rewound, "
        f"{incident.requests_failed} failed; {incident.tokens_recomputed} tokens computed again",
        "phases:  " + ", ".join(f"{name} {_seconds(value)}" for name, value in phases.items()),
        f"next:    {incident.next_step}",
    ]
    for fault in incident.faults:
        lines.append(f"fault:   {fault.error_type} ({fault.fault_class}: {fault.class_reason}): {fault.message}")
        lines += [f"           {frame}" for frame in fault.stack]
    lines += [f"decided: {decision.reason}" for decision in incident.decisions]
    for entry in incident.timeline:
        engine = "" if entry.engine_id is None else f" engine {entry.engine_id}"
        lines.append(f"{_clock(entry.at)}  {entry.sequence:>5} {entry.kind}{engine} {entry.text}".rstrip())
    return lines


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} s"
