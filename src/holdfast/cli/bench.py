"""`holdfast bench`: recovery and overhead on a real server, as a table or as a JSON document."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from holdfast.bench.overhead import OverheadDocument, OverheadSettings, measure_overhead
from holdfast.bench.recovery import RecoveryDocument, RecoverySettings, Trial, choose_scenarios, measure_recovery
from holdfast.chaos.model import default_model_folder, make_dense_model
from holdfast.cli.interrupting import ending_like_ctrl_c
from holdfast.core.errors import HoldfastError

Document = TypeVar("Document", RecoveryDocument, OverheadDocument)

_METRIC_NAMES = {
    "tokens_per_s": "tokens/s",
    "inter_token_p50_ms": "token gap p50, ms",
    "inter_token_p99_ms": "token gap p99, ms",
    "server_cpu_ms_per_token": "server CPU ms/token",
}
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Measure recovery and overhead.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Json = Annotated[bool, typer.Option("--json", help="Print the whole document as JSON; progress goes to stderr.")]
Output = Annotated[Path | None, typer.Option(help="Write the JSON document to this file as well.")]
Streams = Annotated[int, typer.Option(min=1, max=32, help="Concurrent streams.")]
Tokens = Annotated[int, typer.Option(min=20, max=1000, help="Tokens per stream.")]


@app.command()
def recovery(
    scenario: Annotated[list[str] | None, typer.Option(help="Only scenarios with this word or phase.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How often every scenario runs.")] = 1,
    streams: Streams = 8,
    tokens: Tokens = 200,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """What an exception at each phase of a step costs the clients, beside a full restart of the same server."""
    try:
        scenarios = choose_scenarios(scenario or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scenario") from None
    document = _measure(
        lambda model: measure_recovery(
            RecoverySettings(model, _logs() / "recovery.log", scenarios, repeat, streams, tokens, _say)
        )
    )
    _publish(document, as_json, output, _recovery_report)
    raise typer.Exit(0 if document.lawful else 1)


@app.command()
def overhead(
    pairs: Annotated[int, typer.Option(min=1, help="Interleaved pairs of bursts.")] = 15,
    streams: Streams = 8,
    tokens: Tokens = 400,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """What holdfast costs while nothing fails: the same load with holdfast off and on."""
    document = _measure(lambda model: measure_overhead(OverheadSettings(model, _logs(), pairs, streams, tokens, _say)))
    _publish(document, as_json, output, _overhead_report)
    raise typer.Exit(1 if document.problems else 0)


def _measure(measure: Callable[[Path], Document]) -> Document:
    """Make the model and measure; an error becomes one message and an exit code."""
    with ending_like_ctrl_c():
        try:
            return measure(make_dense_model(default_model_folder()))
        except HoldfastError as error:
            typer.echo(f"holdfast bench: {error}", err=True)
            raise typer.Exit(EXIT_USAGE) from None
        except KeyboardInterrupt:
            typer.echo("holdfast bench: stopped; its servers have ended", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _logs() -> Path:
    return default_model_folder().parent / "logs"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _publish(
    document: Document, as_json: bool, output: Path | None, report: Callable[[Document, Console], None]
) -> None:
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
    if as_json:
        sys.stdout.write(text)
    else:
        report(document, Console())


def _recovery_report(document: RecoveryDocument, console: Console) -> None:
    table = Table(
        title="Exceptions on a running server",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("exception", "runs", "median", "max", "lost", "twice", "changed", "exact"):
        table.add_column(heading, justify="left" if heading == "exception" else "right", no_wrap=True)
    for name in dict.fromkeys(trial.scenario for trial in document.trials):
        table.add_row(name, *_scenario_cells([trial for trial in document.trials if trial.scenario == name]))
    console.print(table)
    for trial in document.trials:
        for problem in trial.problems:
            console.print(f"{trial.scenario}: {problem}", markup=False)
    restart = document.restart
    console.print(
        f"Full restart of the same server: {document.restart_total_s:.1f} s (stop {restart.stop_s:.1f}, "
        f"start {restart.start_s:.1f}, first token {restart.first_token_s:.2f}); every answer would be lost."
    )
    if document.restart_to_median_interruption and document.restart_to_max_interruption:
        console.print(
            f"Interruption: {document.restart_to_median_interruption:.0f} times shorter in the median, "
            f"{document.restart_to_max_interruption:.0f} times in the worst stream."
        )


def _scenario_cells(trials: Sequence[Trial]) -> list[str]:
    """One scenario over its repetitions."""
    waits = [wait for trial in trials for wait in trial.interruptions_s]
    counts = (
        sum(trial.lost_tokens for trial in trials),
        sum(trial.repeated_tokens for trial in trials),
        sum(trial.changed_tokens for trial in trials),
    )
    return [
        str(len(trials)),
        _milliseconds(statistics.median(waits) if waits else None),
        _milliseconds(max(waits, default=None)),
        *map(str, counts),
        "NO" if any(trial.problems for trial in trials) else "yes",
    ]


def _overhead_report(document: OverheadDocument, console: Console) -> None:
    table = Table(
        title=f"Holdfast on / off, {len(document.pairs)} interleaved pairs", title_justify="left", box=SIMPLE_HEAD
    )
    for heading in ("", "off", "on", "on/off", "quartiles", "min", "max"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for ratio in document.ratios:
        quartiles = f"{ratio.quartile_low:.3f}–{ratio.quartile_high:.3f}"
        figures = (f"{ratio.off_median:.4g}", f"{ratio.on_median:.4g}", f"{ratio.median:.3f}", quartiles)
        table.add_row(_METRIC_NAMES[ratio.metric], *figures, f"{ratio.minimum:.3f}", f"{ratio.maximum:.3f}")
    console.print(table)
    console.print("The answers are equal, token by token." if not document.problems else "\n".join(document.problems))


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"
