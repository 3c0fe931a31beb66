"""Options that name a topology and a rank, for the demo and the benchmarks."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.bench.topologies import TOPOLOGIES, Topology, topology_named

NAMES = ", ".join(topology.name for topology in TOPOLOGIES)
_HELP = f"Ranks and engines of the server: {NAMES}."


def parse_topology(name: str) -> Topology:
    """Return a topology by name; a usage error lists the known names."""
    try:
        return topology_named(name)
    except KeyError:
        raise typer.BadParameter(f"unknown topology {name!r}; known: {NAMES}") from None


def _parse(name: str | Topology) -> Topology:
    return name if isinstance(name, Topology) else parse_topology(name)


OneTopology = Annotated[
    Topology | None,
    typer.Option("--topology", parser=_parse, metavar="NAME", show_default="by the fault", help=_HELP),
]
Topologies = Annotated[
    list[Topology] | None,
    typer.Option("--topology", parser=_parse, metavar="NAME", help=f"{_HELP} May be given several times."),
]


def choose_place(topology: Topology, engine_id: int | None, rank: int | None) -> tuple[int, int]:
    """Return engine and rank to hurt: by default the last of each, since the host does not even report that rank."""
    engine_id = topology.engines - 1 if engine_id is None else engine_id
    rank = topology.ranks_per_engine - 1 if rank is None else rank
    if (engine_id, rank) not in topology.places:
        raise typer.BadParameter(
            f"{topology.name} has engines 0 to {topology.engines - 1}, "
            f"each with ranks 0 to {topology.ranks_per_engine - 1}",
            param_hint="--engine, --rank",
        )
    return engine_id, rank
