"""Entry point `vllm.endpoint_plugins`: Holdfast's routes on the host's own API server."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import ssl
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.api.access import Access
from holdfast.api.control_token import announce, instance_page_key, instance_token, token_source, withdraw
from holdfast.api.gate import install_gate
from holdfast.api.routes import install
from holdfast.api.systemd import Listening, Serving, start_telling_systemd
from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import HookNotAttached
from holdfast.hosts.vllm.hooks import current_control
from holdfast.hosts.vllm.owner.exit import attach_exit_hook
from holdfast.hosts.vllm.owner.owner import current_owner
from holdfast.hosts.vllm.process.logs import SERVER_LOGGERS, write_log_beside
from holdfast.hosts.vllm.process.members import keep_with
from holdfast.hosts.vllm.process.settings import asks_for_protection
from holdfast.plugin.metrics import attach_front_end_metrics

logger = logging.getLogger("holdfast")


class HoldfastEndpoint:
    """Holdfast's HTTP endpoint, attached by the host in two phases: routes, then state with the engine client."""

    name = "holdfast"
    required_tasks = None

    def __init__(self) -> None:
        self._app: FastAPI | None = None
        self._token = b""

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes of a protected instance; an unprotected server gets none."""
        control = current_control()
        if control is None:
            _refuse_unprotected(app.state.args)
            return
        self._app = app
        app.add_middleware(_LogBeside)
        config = control.config
        self._token = instance_token(Path(config.runtime_dir), config.control_token_file, os.environb)
        is_open, source = config.open_control_to_this_machine, token_source(config.control_token_file, os.environb)
        key = instance_page_key(Path(config.runtime_dir))
        access = Access.by_token(self._token, uid=os.getuid(), is_open=is_open, source=source, session_key=key)
        install(app, control, access)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Close the gate, attach the exit hook and notify systemd, once the engine client is there."""
        control = current_control()
        if self._app is None or control is None:
            return
        # Added last, hence outermost: the host's own guard on /v1 must not demand a second token.
        install_gate(self._app, control)
        attach_exit_hook()
        attach_front_end_metrics(engine_client, control)
        _announce(args, self._token, control.config)
        serving = Serving(self._app, asyncio.get_running_loop())
        start_telling_systemd(_listening(args), serving=serving)


class _LogBeside:
    """Middleware that lets a thread write the HTTP server's log: the server sets up its log just before its start."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            write_log_beside(*SERVER_LOGGERS)
        await self._app(scope, receive, send)


def _listening(args: Namespace) -> Listening:
    """Return the address to listen on; a wildcard address becomes the loopback address."""
    host = args.host if args.host not in (None, "", "0.0.0.0", "::") else "127.0.0.1"
    return Listening(
        host,
        args.port,
        tls=bool(args.ssl_certfile),
        unix_socket=args.uds,
        wants_certificates=bool(args.ssl_certfile) and args.ssl_cert_reqs != ssl.CERT_NONE,
    )


def _announce(args: Namespace, token: bytes, config: HoldfastConfig) -> None:
    """Let commands of the same user find the token, and log where the token is."""
    is_open = config.open_control_to_this_machine
    file = None if args.uds else announce(args.host, args.port, token, is_open=is_open)
    if is_open:
        logger.warning(
            "CONTROL IS OPEN: every process and every proxy on this machine may pause, restart and reconfigure this "
            "server; leave out --open-control-to-this-machine to require the control token"
        )
    if file is not None:
        keep_with(config.runtime_dir, file)
        atexit.register(withdraw, file)
        if (owner := current_owner()) is not None:  # the last line of a defeated instance is followed by nothing
            owner.call_at_close(functools.partial(withdraw, file))
        logger.info("control commands need the token in %s; `holdfast token` prints the token", file)
    elif not args.uds:
        logger.warning("no private folder for the control token can be written; set HOLDFAST_API_KEY for commands")


def _refuse_unprotected(args: Namespace) -> None:
    """Raise `HookNotAttached` when settings for Holdfast were not taken: the hooks are missing in the process."""
    if asks_for_protection(args):
        raise HookNotAttached("Holdfast's settings were not taken: its hooks did not attach")
