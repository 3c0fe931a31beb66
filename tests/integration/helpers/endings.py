"""Servers that end: harm that leads to it, the exit code and the last line of the log."""

from __future__ import annotations

import time

import httpx
import pytest

from holdfast.chaos.control import Control, control_client
from holdfast.chaos.server import Server, log_tail
from holdfast.chaos.streams import MODEL_NAME
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import Servers

END_S = 60.0
EXIT_DEFEATED = 70
NO_RESTARTS = ("--max-worker-restarts", "0", "--max-engine-restarts", "0")
BODY = {"model": MODEL_NAME, "prompt": "The keeper", "max_tokens": 30}


async def hurt(server: Server, *injections: InjectionSpec) -> httpx.Response | httpx.HTTPError:
    async with Control(server.url) as control, control_client(server.url, timeout_s=60) as client:
        for injection in injections:
            await control.inject(injection)
        try:
            return await client.post("/v1/completions", json=BODY)
        except httpx.HTTPError as error:
            return error


def wait_ended(server: Server, timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    while server.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.exit_code is not None, "the server did not end"
    return server.exit_code


def last_line(server: Server) -> str:
    return log_tail(server.spec.log, 1)


def failed_start(servers: Servers, *arguments: str, **environment: str) -> tuple[int | None, list[str]]:
    """Return exit code and log of a start that fails; forked, except in another environment."""
    server = servers.unstarted(servers.spec(*arguments, **environment))
    with pytest.raises(Exception, match="exit code"):
        server.start()
    said = log_tail(server.spec.log, 1000).partition("nanobind: leaked")[0]  # a library, as a forked process ends
    return server.exit_code, said.splitlines()
