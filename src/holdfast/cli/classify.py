"""`holdfast classify`: the class of a fault, the reason, and the first repair."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.cli.options import AsJson
from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.classification import Classification, Classifier, parse_rows
from holdfast.core.faults.fault_table import SIGNAL_NUMBERS, Row
from holdfast.core.policy.ladder import first_repair
from holdfast.hosts.vllm.process.settings import read_rows

# "ValueError: text", as Python ends a traceback; the type may stand in a module.
_TYPED = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Fault|Interrupt|Exit|Silent|Fenced|Logits)): (.*)$", re.S
)
_WIDTH = 180  # columns when the output is not a terminal
_LAST_SIGNAL = 64
_LAST_EXIT_CODE = 255
_SIGNALLED = 128  # a shell adds the number of the signal to 128


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The class of a fault; `first` is the first repair that can help."""

    fault_class: str
    reason: str
    own: bool
    first: str


def classify(
    text: Annotated[
        str, typer.Argument(help="Text of the error, with or without its type: `ValueError: no such block`.")
    ] = "",
    error_type: Annotated[
        str, typer.Option("--type", help="Type of the exception, when the text does not begin with the type.")
    ] = "",
    exit_code: Annotated[
        int | None,
        typer.Option(
            min=-_LAST_SIGNAL,
            max=_LAST_EXIT_CODE,
            help="Exit code of a process; negative, or above 128: ended by a signal.",
        ),
    ] = None,
    signal: Annotated[str, typer.Option(help="Signal that ended a process: SIGKILL.")] = "",
    fault_classes: Annotated[str, typer.Option(metavar="FILE", help="Your own rows, as for `serve`.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show the class of a fault and the reason; without a fault, the whole table."""
    try:
        classifier = Classifier(parse_rows(read_rows(fault_classes)) if fault_classes else ())
        ended = _ended(exit_code, signal)
    except BadConfiguration as error:
        typer.echo(f"holdfast classify: {error}", err=True)
        raise typer.Exit(2) from None
    if ended is not None:
        _say(classifier.of_exit(ended), as_json)
    elif text or error_type:
        _say(classifier.of_error(*_parts(text, error_type)), as_json)
    else:
        _show_table(classifier.rows(), as_json)


def _ended(exit_code: int | None, signal: str) -> int | None:
    """Return how a process ended, a signal as a negative number; None when no end is given."""
    if signal:
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        if name not in SIGNAL_NUMBERS:
            raise BadConfiguration(f"unknown signal {signal!r}", hint=", ".join(SIGNAL_NUMBERS))
        return -SIGNAL_NUMBERS[name]
    known = set(SIGNAL_NUMBERS.values())
    if exit_code is not None and exit_code - _SIGNALLED in known:
        return _SIGNALLED - exit_code
    return exit_code


def _parts(text: str, error_type: str) -> tuple[str, str]:
    """Split a text into type and message; without a type, assume an exception of native code."""
    if not error_type and (typed := _TYPED.match(text)):
        return typed[1], typed[2]
    return error_type.rpartition(".")[2] or "RuntimeError", text


def _say(classification: Classification, as_json: bool) -> None:
    answer = Answer(
        fault_class=classification.fault_class,
        reason=classification.reason,
        own=classification.is_own,
        first=first_repair(classification.fault_class),
    )
    if as_json:
        typer.echo(msgspec.json.encode(answer))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(answer.fault_class, style="bold"))
    console.print(Text(f"  because {answer.reason}" + (" (your own row)" if answer.own else "")))
    console.print(Text(f"  first: {answer.first}"))


def _show_table(rows: Iterable[Row], as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode([_as_dict(row) for row in rows]))
        return
    table = Table("what is seen", "class", "because", box=None, pad_edge=False)
    for row in rows:
        table.add_row(Text(_seen(row)), Text(row.fault_class, style="bold"), Text(row.reason))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _WIDTH
    console.print(table)


def _as_dict(row: Row) -> dict[str, object]:
    seen = {name: getattr(row, name) for name in ("error_type", "message", "exit_code", "signal")}
    stated = {name: value for name, value in seen.items() if value is not None}
    return {**stated, "class": str(row.fault_class), "reason": row.reason, "own": row.is_own}


def _seen(row: Row) -> str:
    """Describe the match of a row in short; the first words of a long pattern name the case."""
    if row.signal is not None:
        return f"ended by {row.signal}"
    if row.exit_code is not None:
        return f"exit code {row.exit_code}"
    parts = [
        f"type {_short(row.error_type)}" if row.error_type else "",
        f"says {_short(row.message)}" if row.message else "",
    ]
    return ", ".join(filter(None, parts)) or "anything else"


def _short(pattern: str | None, longest: int = 48) -> str:
    text = (pattern or "").replace("\\b", "")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
