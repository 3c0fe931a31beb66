"""An app with the control endpoints and a host's own routes, for tests of what stands around them."""

from __future__ import annotations

import os
from collections.abc import Callable

from fastapi import FastAPI
from starlette.testclient import TestClient

from holdfast.api.access import Access
from holdfast.api.gate import install_gate
from holdfast.api.routes import install
from holdfast.api.source import ControlSource

Connect = Callable[..., TestClient]


TOKEN = "secret"
PAGE_KEY = b"a key of a page"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def build_app(control: ControlSource, *, is_open: bool = False) -> FastAPI:
    """Build an app that needs the token, unless its control is open to this machine."""
    app = FastAPI()
    install(app, control, Access.by_token(TOKEN.encode(), uid=os.getuid(), is_open=is_open, session_key=PAGE_KEY))
    install_gate(app, control)
    return app
