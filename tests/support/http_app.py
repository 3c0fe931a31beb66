"""An app with the control endpoints and a host's own routes, for tests of what stands around them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI
from starlette.testclient import TestClient

from holdfast.api.access import Access
from holdfast.api.gate import install_gate
from holdfast.api.routes import install
from holdfast.api.source import ControlSource

Connect = Callable[..., TestClient]


def build_app(control: ControlSource, tokens: tuple[str, ...] = ()) -> FastAPI:
    app = FastAPI()
    install(app, control, Access.from_tokens(tokens))
    install_gate(app, control)
    return app
