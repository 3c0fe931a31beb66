"""The options that commands share, and the bounds of the numbers that they take."""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.core.faults.injection import MAX_ID

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_PORT = 65535
MAX_RANKS = 1024
MAX_RUNS = 1_000_000
MAX_SEED = 2**31 - 1
SHORTEST_S = 0.001

Url = Annotated[str, typer.Option("--url", envvar="HOLDFAST_URL", help="Address of the server.")]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="HOLDFAST_API_KEY", help="Token for the control endpoints.")]
Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url", envvar="HOLDFAST_URL", help="Address of the server; may be repeated.", show_default=DEFAULT_URL
    ),
]
EnginesShown = Annotated[
    list[int] | None, typer.Option("--engine", min=0, max=MAX_ID, help="Only this engine; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
