"""The server of `holdfast demo --simulated-ranks N`: status, page and metrics of an instance that is simulated."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from importlib import metadata

import typer

from holdfast.api.access import Access
from holdfast.api.control_token import announce, configured_token, token_source, withdraw
from holdfast.api.gate import install_gate
from holdfast.api.metrics.exposition import process_exposition
from holdfast.api.metrics.instance import InstanceMetrics
from holdfast.api.routes import install
from holdfast.chaos.simulation.live import LiveInstance, LiveOptions
from holdfast.core.errors import BadConfiguration
from holdfast.sentinel.watching import WatchThread

HOST = "127.0.0.1"
RENEWED_EVERY_S = 1.0
MOST_RANKS_OF_AN_ENGINE = 8


def sized(ranks: int, fault_every_s: float) -> LiveOptions:
    """Return an instance of so many ranks: engines of eight ranks in two pipeline stages, as far as these come out."""
    of_an_engine = next((size for size in (MOST_RANKS_OF_AN_ENGINE, 4, 2) if ranks % size == 0 and ranks > size), 1)
    stages = 2 if of_an_engine >= 4 else 1
    return LiveOptions(ranks // of_an_engine, of_an_engine, stages, fault_every_s)


def serve_simulated(ranks: int, port: int, fault_every_s: float) -> int:
    """Serve a simulated instance until Ctrl-C; return the exit code."""
    import uvicorn
    from fastapi import FastAPI
    from prometheus_client import make_asgi_app

    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise BadConfiguration(
            f"port {port} cannot be opened: {error.strerror}", hint="choose another --port"
        ) from None
    port = listening.getsockname()[1]
    configured = configured_token("", os.environb)
    token = configured if configured is not None else secrets.token_urlsafe(32).encode()
    source = token_source("", os.environb)
    access = Access.by_token(token, uid=os.getuid(), source=source, session_key=secrets.token_bytes(32))
    metrics = InstanceMetrics(process_exposition(), metadata.version("holdfast"), "simulated")
    control = LiveInstance(sized(ranks, fault_every_s), metrics.take)
    renewing = WatchThread("Metrics", metrics.refresh, RENEWED_EVERY_S)
    app = FastAPI(title="Holdfast, simulated")
    install(app, control, access)
    app.mount("/metrics", make_asgi_app())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    app.state.server = server
    app.middleware_stack = app.build_middleware_stack()
    install_gate(app, control)
    file = announce(HOST, port, token, is_open=False)
    control.start()
    renewing.start()
    typer.echo(f"{ranks} simulated ranks; the page: http://{HOST}:{port}/fault_tolerance/")
    typer.echo("the control token: " + ("that of HOLDFAST_API_KEY" if configured is not None else token.decode()))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listening])
    finally:
        renewing.close()
        control.close()
        if file is not None:
            withdraw(file)
    return 0
