"""The options that every control command shares."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="HOLDFAST_URL", help="Address of the server.")]
ApiKey = Annotated[str, typer.Option("--api-key", envvar="HOLDFAST_API_KEY", help="Token for the control endpoints.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
