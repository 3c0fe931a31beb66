"""A real HTTP server in this process, with the control endpoints of a control plane in memory."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from support.control_plane import MemoryControl
from support.http_app import build_app


@contextlib.contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serve `app` on a free port; gives its URL. The socket listens before the server is up: nobody waits."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


class LiveServer:
    """One server for many tests; each gives it a control plane of its own."""

    def __init__(self) -> None:
        self.control = MemoryControl()
        self.open_url = self.guarded_url = self.foreign_url = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[LiveServer]:
        def present() -> MemoryControl:
            return self.control

        with (
            serve(build_app(present, is_open=True)) as self.open_url,
            serve(build_app(present)) as self.guarded_url,
            serve(FastAPI()) as self.foreign_url,
        ):
            yield self
