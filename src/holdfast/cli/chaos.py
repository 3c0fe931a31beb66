"""`holdfast chaos`: processes of a real server are killed at random under constant load; nothing may be lost.

Exit 0 only if no answer was lost or changed, every process came back, and nothing leaked. The server is ended in
every case.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from holdfast.api.control_token import VARIABLE
from holdfast.bench.instrument import precise_client
from holdfast.bench.machine import describe_machine
from holdfast.bench.servers import MANY_FAULTS, server_spec
from holdfast.bench.topologies import DP2, Standby, Topology
from holdfast.chaos.campaign import Campaign, CampaignSettings
from holdfast.chaos.model import default_model_folder
from holdfast.chaos.processes import still_shared
from holdfast.chaos.server import Server
from holdfast.chaos.temporary_files import left_in, temporary_folder
from holdfast.chaos.victims import ProcessKind
from holdfast.cli.chaos_report import ChaosDocument, chaos_report, document_of
from holdfast.cli.measuring import EXIT_BROKEN, measured, publish, require_client, say
from holdfast.cli.options import MAX_SEED
from holdfast.cli.topology_options import OneTopology


def chaos(  # noqa: PLR0913, PLR0917 - one parameter per option
    topology: OneTopology = None,
    minutes: Annotated[float, typer.Option(min=0.1, max=24 * 60, help="How long processes are killed.")] = 5.0,
    period_s: Annotated[
        float, typer.Option("--period-s", min=1, max=24 * 3600, help="Seconds between two kills, at least.")
    ] = 60.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Draws the victims; by default a new one, printed.")
    ] = None,
    kinds: Annotated[list[ProcessKind] | None, typer.Option(help="Only such processes; may be repeated.")] = None,
    standby: Annotated[Standby, typer.Option(help="Workers kept ready for a dead one's place.")] = Standby.PRELOADED,
    clients: Annotated[int, typer.Option(min=1, max=16, help="Loads of nine answers side by side.")] = 2,
    tokens: Annotated[int, typer.Option(min=40, max=1000, help="Tokens per answer.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the document as JSON instead.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON document to this file as well.")] = None,
) -> None:
    """Kill processes of a real vLLM server at random under constant load, and compare every answer."""
    require_client("chaos")
    drawn = seed if seed is not None else random.randrange(1_000_000)
    say(f"victims are drawn with --seed {drawn}; the same seed draws the same victims")
    chosen = tuple(dict.fromkeys(kinds)) if kinds else tuple(ProcessKind)
    if standby is Standby.NONE:
        chosen = tuple(kind for kind in chosen if kind is not ProcessKind.STANDBY)
    settings = CampaignSettings(drawn, minutes, period_s, chosen, clients, tokens, say)
    document = measured("chaos", lambda: _run(replace(topology or DP2, standby=standby), settings))
    publish(document, as_json, output, chaos_report)
    raise typer.Exit(0 if document.lawful else EXIT_BROKEN)


def _run(topology: Topology, settings: CampaignSettings) -> ChaosDocument:
    machine = describe_machine()
    log = default_model_folder().parent / "logs" / f"chaos-{topology.name}.log"
    log.unlink(missing_ok=True)
    with temporary_folder() as folder:
        spec = server_spec(topology, log, *MANY_FAULTS)
        # With a token of its own: the server's temporary folder is not where this process looks for records.
        environment = {**spec.environment, "TMPDIR": str(folder), VARIABLE: secrets.token_urlsafe()}
        server = Server(replace(spec, environment=environment))
        campaign = Campaign(server, settings)
        try:
            say("starting the server")
            server.start()
            with precise_client():
                asyncio.run(campaign.run())
        finally:
            exit_code = server.stop()
        left_behind = _left_behind(server, campaign, left_in(folder))
    return document_of(topology, settings, machine, campaign, left_behind, exit_code)


def _left_behind(server: Server, campaign: Campaign, files: list[str]) -> tuple[str, ...]:
    """List processes, shared memory and `files` of the temporary folder that the server left behind."""
    found = [f"process {pid}" for pid in server.orphans()]
    found += sorted(f"shared memory {segment}" for segment in campaign.segments if still_shared(segment))
    return (*found, *(f"temporary file {name}" for name in files))
