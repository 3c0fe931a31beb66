"""Entry point `vllm.endpoint_plugins`: Holdfast's routes on the host's own API server."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from fastapi import FastAPI

from holdfast.api.access import Access
from holdfast.api.gate import install_gate
from holdfast.api.routes import install
from holdfast.api.systemd import Listening, start_telling_systemd
from holdfast.core.errors import HookNotAttached
from holdfast.hosts.vllm.hooks import current_control
from holdfast.hosts.vllm.owner.exit import attach_exit_hook
from holdfast.hosts.vllm.process.settings import asks_for_protection


class HoldfastEndpoint:
    """Holdfast's HTTP endpoint, attached by the host in two phases: routes, then state with the engine client."""

    name = "holdfast"
    required_tasks = None

    def __init__(self) -> None:
        self._app: FastAPI | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes of a protected instance; an unprotected server gets none."""
        control = current_control()
        if control is None:
            _refuse_unprotected(app.state.args)
            return
        self._app = app
        install(app, control, Access.from_settings(_api_keys(app.state.args), os.environ))

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Close the gate, attach the exit hook and notify systemd, once the engine client is there."""
        control = current_control()
        if self._app is None or control is None:
            return
        # Added last, hence outermost: the host's own guard on /v1 must not demand a second token.
        install_gate(self._app, control)
        attach_exit_hook()
        start_telling_systemd(_listening(args))


def _listening(args: Namespace) -> Listening:
    """Return the address to listen on; a wildcard address becomes the loopback address."""
    host = args.host if args.host not in (None, "", "0.0.0.0", "::") else "127.0.0.1"
    return Listening(host, args.port, tls=bool(args.ssl_certfile), unix_socket=args.uds)


def _api_keys(args: Namespace) -> list[str]:
    keys = getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY") or []
    return [keys] if isinstance(keys, str) else list(keys)


def _refuse_unprotected(args: Namespace) -> None:
    """Raise `HookNotAttached` when settings for Holdfast were not taken: the hooks are missing in the process."""
    if asks_for_protection(args):
        raise HookNotAttached("Holdfast's settings were not taken: its hooks did not attach")
