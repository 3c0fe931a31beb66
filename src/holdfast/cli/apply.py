"""`holdfast apply`: send a command to a running server and wait for its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from holdfast.api.requests import MAX_TIMEOUT_S, CommandName
from holdfast.cli.client import ControlClient, reporting
from holdfast.cli.options import DEFAULT_URL, SHORTEST_S, ApiKey, Url
from holdfast.core.config import SettingValue
from holdfast.core.faults.injection import MAX_ID

_LARGEST = 2**53  # every larger number is out of the range of every setting


def apply(  # noqa: PLR0913, PLR0917 - one parameter per option
    command: Annotated[CommandName, typer.Argument(help="What the engines, and those in lockstep, are to do.")],
    engine: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=MAX_ID, help="An engine; may be repeated. Without it, all that the command applies to."
        ),
    ] = None,
    rank: Annotated[
        list[int] | None,
        typer.Option(min=0, max=MAX_ID, help="Of restart-worker: a rank; may be repeated. Without it, every one."),
    ] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Pause at the next step boundary, not at once.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Of configure: a setting and its new value; may be repeated."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=SHORTEST_S, max=MAX_TIMEOUT_S, help="Seconds to wait for the end.  [default: 30; of a restart 300]"
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Send a command to a running server, and wait for the end of the command."""
    changes = _read_settings(settings or ())
    if (command is CommandName.CONFIGURE) != bool(changes) or (changes and (engine or rank or soft)):
        raise typer.BadParameter("configure takes --set NAME=VALUE and nothing else; other commands take no --set")
    about = {"engines": engine or (), "ranks": rank or (), "soft": soft, "settings": changes, "timeout_s": timeout}
    with reporting():
        answer = ControlClient(url, api_key).apply(command, **about)  # type: ignore[arg-type]
    typer.echo(answer.message)


def _read_settings(texts: Sequence[str]) -> dict[str, SettingValue]:
    """Return settings by name. Raises `typer.BadParameter` for a text without a name or value."""
    settings: dict[str, SettingValue] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as max_retries=100", param_hint="--set")
        settings[name.strip().removeprefix("--").replace("-", "_")] = setting = _read_value(value.strip())
        if isinstance(setting, (int, float)) and not abs(setting) <= _LARGEST:  # nor is any comparison with NaN true
            raise typer.BadParameter(f"{text!r} is out of range", param_hint="--set")
    return settings


def _read_value(text: str) -> SettingValue:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
