"""`holdfast apply`: give a running server an instruction and wait for its end."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.api.formats import Executed
from holdfast.api.requests import MAX_TIMEOUT_S, AwaitedRequest, CommandName, Params, PauseMode
from holdfast.cli.client import ControlClient, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, Url

# The server ends the wait; the client only gives its answer time to arrive.
_ANSWER_MARGIN_S = 5.0


def apply(
    command: Annotated[CommandName, typer.Argument(help="What the engines, and those in lockstep, are to do.")],
    engine: Annotated[
        list[int] | None, typer.Option(help="An engine; may be repeated. Without it, all that it makes sense for.")
    ] = None,
    rank: Annotated[
        list[int] | None, typer.Option(help="Of restart-worker: a rank; may be repeated. Without it, every one.")
    ] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Pause at the next step boundary, not at once.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(help=f"Seconds to wait for the end, up to {MAX_TIMEOUT_S}.  [default: 30; of a restart 300]"),
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Give a running server an instruction: pause, resume, retry after a fault, restart-worker or restart-engine."""
    timeout_s = command.wait_s if timeout is None else timeout
    params = Params(
        engine_ids=tuple(engine) if engine else None,
        mode=PauseMode.SOFT if soft else None,
        ranks=tuple(rank) if rank else None,
    )
    request = AwaitedRequest(
        fault_tolerance_instruction=command, fault_tolerance_timeout=timeout_s, fault_tolerance_params=params
    )
    with reporting():
        answer = ControlClient(url, api_key).post("apply", request, Executed, max(timeout_s, 0) + _ANSWER_MARGIN_S)
    typer.echo(answer.message)
