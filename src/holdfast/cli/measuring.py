"""Shared parts of the commands that measure a real server: client check, end, document."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import typer
from rich.console import Console

from holdfast.cli.interrupting import ending_like_ctrl_c
from holdfast.core.errors import HoldfastError

EXIT_BROKEN, EXIT_CANNOT_RUN, EXIT_INTERRUPTED = 1, 2, 130
TABLE_COLUMNS = 100

Measured = TypeVar("Measured")


def require_client(command: str) -> None:
    """Exit unless the `openai` client is installed, which only measuring commands need."""
    if importlib.util.find_spec("openai") is None:
        typer.echo(f"holdfast {command} needs the openai client: pip install 'holdfast[demo]'", err=True)
        raise typer.Exit(EXIT_CANNOT_RUN)


def measured(command: str, measure: Callable[[], Measured]) -> Measured:
    """Run a measurement; turn an error into a message and an exit code, after every started server has ended."""
    with ending_like_ctrl_c():
        try:
            return measure()
        except HoldfastError as error:
            typer.echo(f"holdfast {command}: {error}", err=True)
            raise typer.Exit(EXIT_CANNOT_RUN) from None
        except KeyboardInterrupt:
            typer.echo(f"holdfast {command}: interrupted; every started server has ended", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


def say(text: str) -> None:
    """Print progress to stderr, beside the document."""
    print(text, file=sys.stderr, flush=True)


def publish(document: Any, as_json: bool, output: Path | None, report: Callable[[Any, Console], None]) -> None:
    """Print the document as a table or as JSON, and write the JSON to a file if named."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    if as_json:
        sys.stdout.write(text)
    else:
        report(document, _console())


def _console() -> Console:
    """Return a console wide enough for the tables: a file or a pipe has no width."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_COLUMNS)
