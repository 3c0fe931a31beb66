"""`holdfast demo`: injects a fault into a real server in the middle of eight answers and shows the recovery.

Exit code 0 only if every law held; a message says what failed. The server is ended in every case.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from holdfast.bench.faulted_run import RunResult, run_faulted, run_reference
from holdfast.bench.harms import Harm
from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import LoadKind, make_load, poisoned
from holdfast.bench.restart import measure_restart
from holdfast.bench.scenarios import passages
from holdfast.bench.servers import make_model, server_spec
from holdfast.bench.topologies import Standby, Topology
from holdfast.chaos.control import Control
from holdfast.chaos.model import default_model_folder
from holdfast.chaos.server import Server, log_tail
from holdfast.chaos.streams import Load
from holdfast.cli.client import reporting
from holdfast.cli.demo_view import View, make_view
from holdfast.cli.interrupting import ending_like_ctrl_c
from holdfast.cli.measuring import EXIT_BROKEN, EXIT_CANNOT_RUN, EXIT_INTERRUPTED, require_client
from holdfast.cli.topology_options import OneTopology, choose_place
from holdfast.core.errors import HoldfastError
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import MAX_ID, InjectionSpec


@dataclass(frozen=True)
class DemoOptions:
    """Options of a demo run."""

    topology: Topology
    injection: InjectionSpec
    streams: int
    tokens: int
    log: Path
    harm: Harm = Harm.EXCEPTION
    standby: bool = False

    @property
    def place(self) -> str:
        """Describe the place of the fault."""
        fault, topology = self.injection, self.topology
        engine = f" of engine {fault.engine_id}" if topology.engines > 1 else ""
        rank = f" in rank {fault.rank}" if topology.ranks_per_engine > 1 and fault.phase.in_worker else ""
        return f"'{fault.phase}'{rank}{engine}"

    @property
    def hurt(self) -> str:
        """Describe the fault."""
        return self.harm.in_words

    @property
    def poison_requests(self) -> int:
        """Return the number of requests that must end: 1 for a poison request, else 0."""
        return 1 if self.injection.request else 0

    def load(self, server: Server, *, hurt: bool = False) -> Load:
        """Build the load; a poison request is part of the `hurt` load only."""
        engines, injection = self.topology.engines, self.injection
        specs = make_load(LoadKind.SHORT_PROMPTS, streams=self.streams, tokens=self.tokens, engines=engines)
        return Load(server.url, poisoned(specs, injection.engine_id, injection.request) if hurt else specs)


def demo(  # noqa: PLR0913, PLR0917 - one parameter per option
    topology: OneTopology = None,
    engine: Annotated[
        int | None, typer.Option(min=0, max=MAX_ID, help="Engine of the fault; by default the last.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, max=MAX_ID, help="Rank of the fault; by default the last.")] = None,
    streams: Annotated[int, typer.Option(min=1, max=16, help="Concurrent answers.")] = 8,
    tokens: Annotated[int, typer.Option(min=40, max=1500, help="Tokens per answer.")] = 400,
    phase: Annotated[
        Phase | None, typer.Option(help="Where in a step the fault happens.", show_default="by the fault")
    ] = None,
    fault: Annotated[Harm, typer.Option(help="The fault to inject.")] = Harm.EXCEPTION,
    standby: Annotated[bool, typer.Option(help="Keep preloaded standby workers ready.")] = False,
    simulated_ranks: Annotated[
        int, typer.Option(min=0, max=4096, help="Serve page and status of a simulated instance of so many ranks.")
    ] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the simulated instance; 0 takes any.")] = 8009,
    fault_every: Annotated[
        float, typer.Option(min=0.0, max=86400.0, help="Seconds between faults of the simulated instance; 0: none.")
    ] = 6.0,
) -> None:
    """Inject a fault into a real vLLM server during eight streaming answers, and compare every token afterwards."""
    if simulated_ranks:
        from holdfast.cli.simulated_server import serve_simulated

        with reporting():
            raise typer.Exit(serve_simulated(simulated_ranks, port, fault_every))
    require_client("demo")
    topology, phase = topology or fault.usual_topology, phase or fault.usual_phase
    if not fault.happens_at(phase):
        raise typer.BadParameter(f"{phase} is not a phase of a {fault.victim}", param_hint="--phase")
    engine_id, its_rank = choose_place(topology, engine, rank)
    injection = fault.injection(phase, engine_id, its_rank, passages(phase, tokens // 3))
    log = default_model_folder().parent / "logs" / f"demo-{topology.name}.log"
    options = DemoOptions(topology, injection, streams, tokens, log, fault, standby=standby)
    with ending_like_ctrl_c():
        raise typer.Exit(_show(options, make_view()))


def _show(options: DemoOptions, view: View) -> int:
    try:
        problems = _perform(options, view)
    except HoldfastError as error:
        view.say(f"The demo could not run: {error}")
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        view.say("Interrupted; the server has ended.")
        return EXIT_INTERRUPTED
    view.conclude(problems, options.streams, poison_requests=options.poison_requests)
    if problems:
        view.say(f"End of the server's log ({options.log}):\n{log_tail(options.log)}")
    return EXIT_BROKEN if problems else 0


def _perform(options: DemoOptions, view: View) -> list[str]:
    """Run the whole demo; return every broken law."""
    with view.waiting("making a small model"):
        make_model(options.topology)
    options.log.unlink(missing_ok=True)
    more = Standby.PRELOADED.arguments(options.topology.ranks_per_engine) if options.standby else ()
    server = Server(server_spec(options.topology, options.log, *more))
    flags = " ".join(["--enable-fault-injection", *options.topology.arguments, *more])
    try:
        with view.waiting(f"starting vLLM on it: holdfast serve … {flags}") as tick:
            server.start(tick)
        with precise_client():
            result = asyncio.run(_stream_twice(options, view, server))
        with view.waiting("for comparison: restarting the same server in full") as tick:
            server, restart = measure_restart(server, tick)
    finally:
        server.stop()
    view.results(result, restart)
    return [*result.problems, *_leftovers(server)]


def _leftovers(server: Server) -> list[str]:
    orphans = server.orphans()
    return [f"processes left behind by the server: {orphans}"] if orphans else []


async def _stream_twice(options: DemoOptions, view: View, server: Server) -> RunResult:
    """Stream without a fault for the reference, then with a fault in the middle."""
    async with Control(server.url) as control:
        with view.waiting("streaming the answers once without a fault, as the reference"):
            reference = await run_reference(options.load(server), control)
        if options.standby:
            with view.waiting("waiting for the standby workers"):
                await control.await_standbys()
        view.say(f"the same again, with {options.hurt} at {options.place} after {options.injection.after_steps} steps")
        load = options.load(server, hurt=True)
        watching = asyncio.create_task(view.watch(load, control))
        try:
            result = await run_faulted(load, control, reference, options.injection, options.topology)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    view.aftermath(load.histories, result)
    return result
