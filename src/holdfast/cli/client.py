"""What commands share beside the typed client: how a failure ends a command, and what is safe to print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from holdfast.client import REFUSED, UNREACHABLE, Client, ClientFailure

__all__ = ["REFUSED", "UNREACHABLE", "ClientFailure", "ControlClient", "printable", "reporting"]

ControlClient = Client


@contextmanager
def reporting() -> Iterator[None]:
    """Turn a `ClientFailure` into a line on stderr and an exit code."""
    try:
        yield
    except ClientFailure as failure:
        typer.echo(f"holdfast: {printable(str(failure))}", err=True)
        raise typer.Exit(failure.exit_code) from None


def printable(text: str) -> str:
    """Return text from a server without characters that control a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
