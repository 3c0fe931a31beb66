"""`holdfast bench`: recovery and overhead on a real server, as a table or as a JSON document."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from holdfast.bench.figures import RecoveryDocument
from holdfast.bench.harms import Harm
from holdfast.bench.overhead import OverheadDocument, OverheadSettings, measure_overhead
from holdfast.bench.recovery import RecoverySettings, measure_recovery
from holdfast.bench.scenarios import Chosen, choose_scenarios, random_scenarios
from holdfast.bench.servers import make_model
from holdfast.bench.topologies import ONE, Standby, Topology
from holdfast.chaos.model import default_model_folder
from holdfast.cli.bench_tables import overhead_report, recovery_report
from holdfast.cli.measuring import measured, publish, require_client, say
from holdfast.cli.options import MAX_RUNS, MAX_SEED
from holdfast.cli.topology_options import Topologies

Document = TypeVar("Document", RecoveryDocument, OverheadDocument)

app = typer.Typer(
    help="Measure recovery and overhead.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Json = Annotated[bool, typer.Option("--json", help="Print the whole document as JSON; progress goes to stderr.")]
Output = Annotated[Path | None, typer.Option(help="Write the JSON document to this file as well.")]
Streams = Annotated[int, typer.Option(min=1, max=32, help="Concurrent streams.")]
Tokens = Annotated[int, typer.Option(min=20, max=1000, help="Tokens per stream.")]


@app.command()
def recovery(  # noqa: PLR0913, PLR0917 - one parameter per option
    topology: Topologies = None,
    fault: Annotated[Harm, typer.Option(help="The fault to inject.")] = Harm.EXCEPTION,
    standby: Annotated[
        list[Standby] | None,
        typer.Option(help="Standby workers; may be given several times."),
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only scenarios with this word in their name or phase.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=MAX_RUNS, help="Number of runs of every scenario.")] = 1,
    soak: Annotated[
        int, typer.Option(min=0, max=MAX_RUNS, help="Run this many random faults instead, one after another.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of the soak's faults; by default a new seed, printed.")
    ] = None,
    streams: Streams = 8,
    tokens: Tokens = 200,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure the cost of a fault for the clients, beside a full restart of the same server.

    The fault is an exception at each phase of a step, or hits each worker or engine core in turn.
    """
    require_client("bench")
    if soak and fault is not Harm.EXCEPTION:
        raise typer.BadParameter("a soak injects exceptions only", param_hint="--fault")
    if soak and scenario:
        raise typer.BadParameter("a soak draws its faults at random", param_hint="--scenario")
    if seed is not None and not soak:
        raise typer.BadParameter("a seed requires --soak", param_hint="--seed")
    plain = dict.fromkeys(topology or [fault.usual_topology])
    topologies = tuple(replace(one, standby=kept) for one in plain for kept in standby or [Standby.NONE])
    drawn = (seed if seed is not None else random.randrange(1_000_000)) if soak else None
    chosen = _choose(topologies, scenario or [], fault) if drawn is None else _draw(topologies, soak, drawn)
    settings = RecoverySettings(chosen, _logs(), repeat, streams, tokens, drawn, say)
    document = measured("bench", lambda: measure_recovery(settings))
    publish(document, as_json, output, recovery_report)
    raise typer.Exit(0 if document.lawful else 1)


def _choose(topologies: Sequence[Topology], words: Sequence[str], harm: Harm) -> Chosen:
    try:
        return choose_scenarios(topologies, words, harm)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scenario") from None


def _draw(topologies: Sequence[Topology], count: int, seed: int) -> Chosen:
    say(f"drawing {count} faults per topology; repeat them with --seed {seed}")
    return tuple((topology, random_scenarios(topology, count, seed)) for topology in topologies)


@app.command()
def overhead(
    pairs: Annotated[int, typer.Option(min=1, max=MAX_RUNS, help="Interleaved pairs of bursts.")] = 15,
    streams: Streams = 8,
    tokens: Tokens = 400,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Measure the cost of Holdfast while nothing fails: the same load with Holdfast off and on."""
    require_client("bench")

    def measure() -> OverheadDocument:
        return measure_overhead(OverheadSettings(make_model(ONE), _logs(), pairs, streams, tokens, say))

    document = measured("bench", measure)
    publish(document, as_json, output, overhead_report)
    raise typer.Exit(1 if document.problems else 0)


def _logs() -> Path:
    return default_model_folder().parent / "logs"
