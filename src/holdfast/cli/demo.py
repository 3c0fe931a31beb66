"""`holdfast demo`: a real server gets hurt in the middle of eight answers and carries on.

Exit 0 only if every law held; a message says what failed. The server is ended in every case.
"""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from holdfast.bench.instrument import precise_client
from holdfast.bench.loads import SERVER_ARGUMENTS, LoadKind, make_load
from holdfast.bench.restart import measure_restart
from holdfast.bench.trial import Outcome, run_faulted, run_reference
from holdfast.chaos.control import Control
from holdfast.chaos.model import default_model_folder, make_dense_model
from holdfast.chaos.server import Server, ServerSpec, log_tail
from holdfast.chaos.streams import Load
from holdfast.cli.demo_view import View, make_view
from holdfast.cli.interrupting import ending_like_ctrl_c
from holdfast.core.errors import HoldfastError
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec

EXIT_BROKEN, EXIT_CANNOT_RUN, EXIT_INTERRUPTED = 1, 2, 130
_ARGUMENTS = (*SERVER_ARGUMENTS, "--enable-fault-injection", "--external-fault-notify-port", "0")


@dataclass(frozen=True)
class DemoOptions:
    """What the demo shows."""

    streams: int
    tokens: int
    phase: Phase
    model: Path
    log: Path

    def load(self, server: Server) -> Load:
        return Load(server.url, make_load(LoadKind.SHORT_PROMPTS, streams=self.streams, tokens=self.tokens))


def demo(
    streams: Annotated[int, typer.Option(min=1, max=16, help="Concurrent answers.")] = 8,
    tokens: Annotated[int, typer.Option(min=40, max=1500, help="Tokens per answer.")] = 400,
    phase: Annotated[Phase, typer.Option(help="Where in a step the exception is raised.")] = Phase.FORWARD,
) -> None:
    """Watch a real vLLM server get hurt in the middle of eight streaming answers and carry on, every token right."""
    if importlib.util.find_spec("openai") is None:
        typer.echo("holdfast demo needs the openai client: pip install 'holdfast[demo]'", err=True)
        raise typer.Exit(EXIT_CANNOT_RUN)
    folder = default_model_folder()
    options = DemoOptions(streams, tokens, phase, folder, folder.parent / "logs" / "demo.log")
    with ending_like_ctrl_c():
        raise typer.Exit(_show(options, make_view()))


def _show(options: DemoOptions, view: View) -> int:
    try:
        problems = _perform(options, view)
    except HoldfastError as error:
        view.say(f"The demo could not run: {error}")
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        view.say("Stopped; the server has ended.")
        return EXIT_INTERRUPTED
    view.verdict(problems, options.streams)
    if problems:
        view.say(f"The end of the server's log ({options.log}):\n{log_tail(options.log)}")
    return EXIT_BROKEN if problems else 0


def _perform(options: DemoOptions, view: View) -> list[str]:
    """The whole demo; returns every law that was broken."""
    with view.waiting("making a small model"):
        make_dense_model(options.model)
    options.log.unlink(missing_ok=True)
    server = Server(ServerSpec(model=options.model, log=options.log, arguments=_ARGUMENTS))
    try:
        with view.waiting("starting vLLM on it: holdfast serve … --enable-fault-injection") as tick:
            server.start(tick)
        with precise_client():
            outcome = asyncio.run(_stream_twice(options, view, server))
        with view.waiting("for comparison: restarting the same server in full") as tick:
            server, restart = measure_restart(server, tick)
    finally:
        server.stop()
    view.results(outcome, restart)
    return [*outcome.problems, *_leftovers(server)]


def _leftovers(server: Server) -> list[str]:
    orphans = server.orphans()
    return [f"the server left processes behind: {orphans}"] if orphans else []


async def _stream_twice(options: DemoOptions, view: View, server: Server) -> Outcome:
    """Once without a fault, as the reference, and once with one in the middle."""
    injection = InjectionSpec(phase=options.phase, after_steps=options.tokens // 3)
    async with Control(server.url) as control:
        with view.waiting("streaming the answers once without a fault, as the reference"):
            reference, problems = await run_reference(options.load(server), control)
        view.say(f"the same again, with an exception at '{options.phase}' after {injection.after_steps} steps")
        load = options.load(server)
        watching = asyncio.create_task(view.watch(load, control))
        try:
            outcome = await run_faulted(load, control, reference, injection, problems)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    view.aftermath(load.histories, outcome)
    return outcome
