from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from support.control_plane import MemoryControl
from support.http_app import Connect, build_app


def pytest_configure(config: pytest.Config) -> None:
    """Load the plugin of schemathesis, for the tests of this folder only: its import takes half a second."""
    if not config.pluginmanager.has_plugin("schemathesis"):
        config.pluginmanager.import_plugin("schemathesis.pytest.plugin")


@pytest.fixture
def control() -> MemoryControl:
    """One engine, attached, external policy; it does what it is told at once."""
    built = MemoryControl().attach()
    built.obedient = True
    return built


@pytest.fixture
def connect(control: MemoryControl) -> Connect:
    """A client of an app on `control`, seen as calling from `host`."""

    def connect_from(host: str = "127.0.0.1", tokens: tuple[str, ...] = ()) -> TestClient:
        return TestClient(build_app(control, tokens), client=(host, 50_000))

    return connect_from


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()
