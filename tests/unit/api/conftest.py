from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from support.control_plane import MemoryControl
from support.http_app import BEARER, Connect, build_app


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
    """A client of an app on `control`, with the token unless told otherwise."""

    def connect_with(*, authorized: bool = True) -> TestClient:
        return TestClient(build_app(control), headers=BEARER if authorized else {})

    return connect_with


@pytest.fixture
def client(connect: Connect) -> TestClient:
    return connect()
