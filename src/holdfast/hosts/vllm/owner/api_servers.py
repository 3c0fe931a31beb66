"""Replacement of one of several API servers, started as the host's launcher started the first process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import HookNotAttached, RecoveryFailed
from holdfast.core.instance.processes import api_server
from holdfast.hosts.vllm.contract.front_end_touchpoints import CLIENT_INIT, GREET
from holdfast.hosts.vllm.contract.hooks import missing
from holdfast.hosts.vllm.process.bootstrap import Bootstrap, bootstrapped
from holdfast.hosts.vllm.process.lifecycle import spawning
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.sentinel import ClientSentinel

_NOT_ACCEPTING = 2**31 - 1  # the load with which the host marks a server that takes no connections
_LISTENERS = ("input_listener", "output_listener")
_WATCH_S = 0.2


def save_api_server_arguments(original: Callable[..., None], manager: Any, *args: Any, **kwargs: Any) -> None:
    """Keep the arguments of every API server, around the manager's `__init__`: a started process forgets them."""
    if inherited_settings() is None:
        original(manager, *args, **kwargs)
        return
    context = multiprocessing.get_context("spawn")
    made: list[dict[str, Any]] = []

    def make(**arguments: Any) -> Any:
        made.append(arguments)
        return type(context).Process(**{**arguments, "target": Bootstrap(arguments["target"], background=False)})

    vars(context)["Process"] = make
    try:
        original(manager, *args, **kwargs)
    finally:
        del vars(context)["Process"]
    manager.holdfast_arguments = made


class ApiServerProcess:
    """An API server in a process beside the owner; implements `FrontEndProcess`."""

    def __init__(self, manager: Any, index: int, sentinel: ClientSentinel) -> None:
        self.name = api_server(index)
        self._manager = manager
        self._index = index
        self._sentinel = sentinel

    @property
    def process(self) -> Any:
        return self._manager.processes[self._index]

    @property
    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = self._manager.holdfast_arguments[self._index]
        return arguments

    @property
    def _client_config(self) -> dict[str, Any]:
        config: dict[str, Any] = self._arguments["args"][-1]
        return config

    def unrecoverable_reason(self) -> str:
        return ""

    def note_loss(self) -> None:
        """Mark the server as not accepting in the load shared by all servers, and clear the admission count."""
        self._client_config["api_server_loads"][self._index] = _NOT_ACCEPTING
        if (counters := self._client_config.get("mp_admission_counters")) is not None:
            counters[self._index * (len(counters) // len(self._manager.processes))] = 0

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        """Start a process and wait until connections are accepted.

        Raises:
            RecoveryFailed: the process ended, or does not serve within the engine start timeout.
            HookNotAttached: the process serves without protection.
        """
        *others, config = self._arguments["args"]
        # The first process was given its listening sockets; without them the client binds the same addresses.
        config = {key: value for key, value in config.items() if key not in _LISTENERS}
        context = multiprocessing.get_context("spawn")
        with spawning(self._sentinel.config), bootstrapped(context, background=False):
            process = context.Process(**{**self._arguments, "args": (*others, config)})
            process.start()
        self._manager.processes[self._index] = process
        on_started()
        self._await_serving(process)
        self._check_hooks(process)

    def _await_serving(self, process: Any) -> None:
        loads, timeout_s = self._client_config["api_server_loads"], self._sentinel.config.engine_start_timeout_s
        deadline = time.monotonic() + timeout_s
        while loads[self._index] == _NOT_ACCEPTING:
            if multiprocessing.connection.wait([process.sentinel], _WATCH_S):
                raise RecoveryFailed("the process ended before it served; see the log above")
            if time.monotonic() > deadline:
                raise RecoveryFailed(f"the process did not serve within {timeout_s:g} s")

    def _check_hooks(self, process: Any) -> None:
        """Raise `HookNotAttached` unless the process has reported the hooks of a protected API server."""
        report = next((r for r in self._sentinel.await_links(0.0) if r.link_id == self._index), None)
        if report is None or report.pid != process.pid:
            raise HookNotAttached(f"{self.name} serves without a link to the owner of the engine cores")
        if absent := missing((CLIENT_INIT, GREET), report.hooks):
            raise HookNotAttached(f"{self.name} did not attach {', '.join(absent)}")
