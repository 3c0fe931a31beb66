"""`holdfast inject`: inject a fault into a server that was started for injection."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.api.formats import Accepted
from holdfast.cli.client import ControlClient, reporting
from holdfast.cli.options import DEFAULT_URL, SHORTEST_S, ApiKey, Url
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import (
    MAX_ID,
    MAX_REQUEST_INDEX,
    MAX_SECONDS,
    MAX_STEPS,
    MAX_TIMES,
    MAX_TOGETHER,
    FaultKind,
    InjectionSpec,
)

# The server waits for the rank to confirm before it answers.
_CONFIRM_TIMEOUT_S = 30.0


def inject(  # noqa: PLR0913, PLR0917 - one parameter per option
    phase: Annotated[Phase, typer.Option(help="Where in a step the fault happens.")],
    engine: Annotated[int, typer.Option(min=0, max=MAX_ID, help="Engine of the fault.")] = 0,
    rank: Annotated[int, typer.Option(min=0, max=MAX_ID, help="Rank of the fault, for phases of a worker.")] = 0,
    kind: Annotated[FaultKind, typer.Option(help="Kind of the fault.")] = FaultKind.RAISE,
    after_steps: Annotated[
        int, typer.Option(min=0, max=MAX_STEPS, help="Passages of the phase to let go by first.")
    ] = 0,
    times: Annotated[int, typer.Option(min=1, max=MAX_TIMES, help="Number of passages in a row that fail.")] = 1,
    request_index: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_REQUEST_INDEX, help="For output-request and nan: which request of the batch; nan: 0 is all."
        ),
    ] = 1,
    message: Annotated[str, typer.Option(help="Text of the exception.")] = "injected fault",
    seconds: Annotated[float, typer.Option(min=SHORTEST_S, max=MAX_SECONDS, help="For slow: delay in seconds.")] = 0.5,
    request: Annotated[str, typer.Option(help="Only in steps of a request with this text in its id.")] = "",
    together: Annotated[
        int, typer.Option(min=1, max=MAX_TOGETHER, help="Number of such requests that a step needs.")
    ] = 1,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = "",
) -> None:
    """Inject a fault into a server that was started with --enable-fault-injection."""
    try:
        spec = InjectionSpec(
            phase=phase,
            kind=kind,
            engine_id=engine,
            rank=rank,
            after_steps=after_steps,
            times=times,
            request_index=request_index,
            message=message,
            seconds=seconds,
            request=request,
            together=together,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with reporting():
        answer = ControlClient(url, api_key).post("inject", spec, Accepted, _CONFIRM_TIMEOUT_S)
    typer.echo(f"{answer.message} ({answer.request_id})")
