"""`holdfast token`: the control token that commands send to a server, for curl and other clients."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from holdfast.api.notify import notification_password
from holdfast.cli.client import ClientFailure, ControlClient, reporting
from holdfast.cli.options import ApiKey, Url

REFUSED = 1


def token(
    url: Url = "http://127.0.0.1:8000",
    api_key: ApiKey = "",
    notifications: Annotated[
        bool, typer.Option("--notifications", help="Print the password of notifications instead.")
    ] = False,
) -> None:
    """Print the control token of a server, of HOLDFAST_API_KEY or of a server of the current user on this machine."""
    with reporting():
        found = ControlClient(url, api_key).token
        if found is None:
            raise ClientFailure(
                f"no server of this user at {url} has left a token here; run this as the server's user on its "
                "machine, or set HOLDFAST_API_KEY at the start of the server",
                REFUSED,
            )
    sys.stdout.buffer.write((notification_password(found) if notifications else found) + b"\n")
    sys.stdout.flush()
