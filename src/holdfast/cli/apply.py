"""`holdfast apply`: give a running server an instruction and wait for its end."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.api.formats import MAX_TIMEOUT_S, AwaitedRequest, Executed, Instruction, Params
from holdfast.cli.client import ControlClient, reporting
from holdfast.cli.options import DEFAULT_URL, ApiKey, Url

# The server ends the wait; the client only gives its answer time to arrive.
_ANSWER_MARGIN_S = 5.0


def apply(
    instruction: Annotated[Instruction, typer.Argument(help="What to do: retry lets a paused engine go on.")],
    engine: Annotated[int | None, typer.Option(help="Engine; without it, the one that stands paused.")] = None,
    timeout: Annotated[float, typer.Option(help=f"Seconds to wait for the end, up to {MAX_TIMEOUT_S}.")] = 30.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Give a running server an instruction."""
    request = AwaitedRequest(
        fault_tolerance_instruction=instruction,
        fault_tolerance_timeout=timeout,
        fault_tolerance_params=Params(engine_id=engine),
    )
    with reporting():
        answer = ControlClient(url, api_key).post("apply", request, Executed, max(timeout, 0) + _ANSWER_MARGIN_S)
    typer.echo(answer.message)
