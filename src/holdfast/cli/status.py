"""`holdfast status`: the engines of a running server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Annotated, NoReturn

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast.api.formats import Status
from holdfast.cli.client import REFUSED, ClientFailure, ControlClient, printable, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, AsJson, EnginesShown, Urls
from holdfast.core.protocol.events import EngineStatus
from holdfast.core.states import EngineState

_COLOURS = {"healthy": "green", "unhealthy": "yellow", "dead": "red"}


FullTexts = Annotated[
    bool, typer.Option("--full-texts", help="Also the texts of exceptions as they are, which may quote requests.")
]


Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show the state anew every second, until interrupted.")]
WATCH_S = 1.0


def status(
    urls: Urls = None,
    api_key: ApiKey = "",
    as_json: AsJson = False,
    full_texts: FullTexts = False,
    engine: EnginesShown = None,
    watch: Watch = False,
) -> None:
    """Show the state of the engines of one or several running servers."""
    asked = {"full_texts": "true"} if full_texts else {}
    with reporting():
        clients = {url: ControlClient(url, api_key) for url in urls or [DEFAULT_URL]}

    def look() -> dict[str, Status]:
        return {url: _only(client.get("status", Status, **asked), engine) for url, client in clients.items()}

    with contextlib.suppress(KeyboardInterrupt), reporting():
        if watch and not as_json:
            _show_anew(look)
        while watch and as_json:
            _print_json(look())
            time.sleep(WATCH_S)
        found = look()
        if as_json:
            _print_json(found)
        else:
            Console().print(_picture(found))


def _only(found: Status, engines: list[int] | None) -> Status:
    """Return a status with some engines only. Raises `ClientFailure` for an engine that the server does not have."""
    known = {each.engine_id for each in found.engines}
    if missing := sorted(set(engines or ()) - known):
        named = ", ".join(map(str, sorted(known)))
        raise ClientFailure(f"there is no engine {missing[0]}; `holdfast status` shows all: {named}", REFUSED)
    shown = tuple(e for e in found.engines if not engines or e.engine_id in engines)
    return msgspec.structs.replace(found, engines=shown)


def _print_json(found: dict[str, Status]) -> None:
    """Print the status object of one server, an object by URL of several."""
    typer.echo(msgspec.json.encode(next(iter(found.values())) if len(found) == 1 else found))


def _show_anew(look: Callable[[], dict[str, Status]]) -> NoReturn:
    """Show the state every second; a server that cannot be reached for a moment is told and asked again."""
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            try:
                picture = _picture(look())
            except ClientFailure as failure:
                if not failure.passing:
                    raise
                picture = Group(Text(f"{printable(str(failure))}; trying again"))
            live.update(picture, refresh=True)
            time.sleep(WATCH_S)


def _picture(found: dict[str, Status]) -> Group:
    """Return tables and lines of servers, each under its URL where there are several."""
    parts: list[Table | Text] = []
    more = (_limits, _standbys, _suspicions, _guilty, _processes, _texts)
    for url, each in found.items():
        if len(found) > 1:
            parts.append(Text(printable(url), style="bold"))
        lines = (*(line for describe in more for line in describe(each)), _summary(each))
        parts += [_table(each), *map(Text, lines)]
    return Group(*parts)


def _table(found: Status) -> Table:
    table = Table()
    for title in (
        "engine",
        "in lockstep with",
        "status",
        "state",
        "epoch",
        "ranks",
        "pid",
        "faults",
        "recoveries",
        "restarts",
    ):
        table.add_column(title)
    table.add_column("about")
    for engine in found.engines:
        table.add_row(*_row(engine))
    return table


def _row(engine: EngineStatus) -> list[Text]:
    about = engine.fault_info or engine.reason or engine.last_error or ""
    counts = (engine.epoch, engine.ranks, engine.pid or "–", engine.faults, engine.recoveries, engine.worker_restarts)
    return [
        Text(str(engine.engine_id)),
        Text(", ".join(map(str, engine.lockstep_with)) or "–"),
        Text(printable(engine.status), style=_COLOURS.get(engine.status, "")),
        Text(_state(engine)),
        *(Text(str(count)) for count in counts),
        Text(printable(about)),
    ]


def _state(engine: EngineStatus) -> str:
    by_operator = engine.paused_by_operator and engine.state in (EngineState.PAUSING, EngineState.PAUSED)
    return f"{engine.state} by operator" if by_operator else engine.state


def _limits(found: Status) -> Iterator[str]:
    """Yield state that a rebuild loses, once for all engines concerned."""
    whats = dict.fromkeys(what for engine in found.engines for what in engine.unrebuildable)
    for what in whats:
        engines = ", ".join(str(engine.engine_id) for engine in found.engines if what in engine.unrebuildable)
        yield f"collectives of engine {engines} cannot be rebuilt: {printable(what)}"


def _standbys(found: Status) -> Iterator[str]:
    for engine in found.engines:
        if engine.standbys:
            s = engine.standbys
            memory = f"{s.memory_bytes / 2**20:.0f} MiB"
            starting = f", {s.starting} starting" if s.starting else ""
            problem = f"; {printable(s.problem)}" if s.problem else ""
            ready = f"{s.ready} of {s.wanted} ready{starting}"
            yield f"standby workers of engine {engine.engine_id}: {ready}, {memory}{problem}"


def _suspicions(found: Status) -> Iterator[str]:
    for engine in found.engines:
        if engine.suspects or engine.ended_requests:
            counts = f"{engine.suspects} suspected, {engine.ended_requests} ended as guilty"
            yield f"requests of engine {engine.engine_id}: {counts}"


def _guilty(found: Status) -> Iterator[str]:
    for each in found.remembered:
        until = time.strftime("%H:%M:%S", time.localtime(each.until))
        now = f"refused until {until}, {each.refusals} times so far" if each.refused else f"on trial until {until}"
        yield f"poison {each.kind} {printable(each.fingerprint)}: {now} (incident {printable(each.incident)})"


def _processes(found: Status) -> Iterator[str]:
    for process in found.processes:
        where = f"pid {process.pid}" if process.pid is not None else "gone, another one is being started"
        times = f", replaced {process.restarts} times" if process.restarts else ""
        yield f"{printable(process.name)}: {where}{times}"


def _texts(found: Status) -> Iterator[str]:
    for each in found.full_texts or ():
        rank = "" if each.rank is None else f", rank {each.rank}"
        yield f"{each.error_type} in engine {each.engine_id}{rank} ({each.place}): {printable(each.text)}"


def _summary(found: Status) -> str:
    if found.defeat:
        return f"defeated: {printable(found.defeat)}"
    ready = "ready" if found.ready else "not ready"
    return (
        f"{ready} · policy {found.policy} · {found.sequence} events · notifies at {found.notify_address or 'no port'}"
    )
