from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.main import app
from support.control_plane import MemoryControl
from support.live_server import LiveServer

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def _running_server() -> Iterator[LiveServer]:
    with LiveServer().running() as server:
        yield server


@pytest.fixture
def server(_running_server: LiveServer) -> LiveServer:
    """A server whose one engine is attached and does what it is told at once."""
    _running_server.control = MemoryControl().attach()
    _running_server.control.obedient = True
    return _running_server


@pytest.fixture
def control(server: LiveServer) -> MemoryControl:
    return server.control


@pytest.fixture
def closed_url() -> str:
    """A URL without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        return f"http://127.0.0.1:{once.getsockname()[1]}"


@pytest.fixture
def run(server: LiveServer) -> Run:
    """Run a `holdfast` command line against the open server, unless the environment says otherwise."""

    def run_line(*arguments: str, **environment: str) -> Result:
        variables = {"HOLDFAST_URL": server.open_url, "HOLDFAST_API_KEY": "", "COLUMNS": "200", **environment}
        return CliRunner(env=variables).invoke(app, list(arguments), prog_name="holdfast")

    return run_line
