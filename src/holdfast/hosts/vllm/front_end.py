"""The process that owns the engine cores: its ClientSentinel, its folder, its end.

Fails closed: what this version cannot protect is refused before anything starts, and a server whose
processes did not all report their hooks does not serve.
"""

from __future__ import annotations

import functools
import inspect
import logging
import multiprocessing.connection
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadConfiguration, HookNotAttached
from holdfast.hosts.vllm.register import BUSY_LOOP, ENGINE_INIT, OWN_ENGINES, WORKER_QUEUES, attach, missing
from holdfast.hosts.vllm.settings import handed_down, take_settings
from holdfast.hosts.vllm.versions import refuse_unknown_host
from holdfast.sentinel import ClientSentinel
from holdfast.sentinel.addresses import client_address
from holdfast.sentinel.client import Sink
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

ATTACH_TIMEOUT_S = 60.0
END_GRACE_S = 10.0


class Outlets(Protocol):
    """Where the events of an instance go; made before any engine core starts."""

    address: str
    sinks: tuple[Sink, ...]

    def close(self) -> None: ...


MakeOutlets = Callable[[HoldfastConfig], Outlets]


def attach_front_end_hooks(make_outlets: MakeOutlets) -> None:
    attach(OWN_ENGINES, functools.partial(_own_engines, make_outlets))


# The protected front end of this process; a process owns one instance.
_current: FrontEnd | None = None


def current_front_end() -> FrontEnd | None:
    return _current


def _own_engines(
    make_outlets: MakeOutlets, original: Callable[..., None], client: Any, *args: Any, **kwargs: Any
) -> None:
    bound = inspect.signature(original).bind(client, *args, **kwargs)
    vllm_config = bound.arguments["vllm_config"]
    config = take_settings(vllm_config)
    if config is None or not config.enable_fault_tolerance:
        original(client, *args, **kwargs)
        return
    refuse_unknown_host(allowed=config.allow_unknown_host)
    refuse_unprotected(vllm_config, bound.arguments.get("client_addresses"))
    bound.arguments["executor_class"] = _protected_executor(vllm_config, bound.arguments["executor_class"])
    front_end = FrontEnd(config, client, make_outlets)
    _start(front_end, client, lambda: original(*bound.args, **bound.kwargs))


def _start(front_end: FrontEnd, client: Any, start_engines: Callable[[], None]) -> None:
    global _current
    try:
        with handed_down(front_end.config):
            start_engines()
        front_end.start()
    except BaseException:
        front_end.close()
        if getattr(client, "resources", None) is not None:
            client.shutdown()
        raise
    _current = front_end


def refuse_unprotected(vllm_config: Any, client_addresses: Any) -> None:
    """Raises `BadConfiguration` for a topology that this version does not protect."""
    parallel = vllm_config.parallel_config
    sizes = {
        "tensor": parallel.tensor_parallel_size,
        "pipeline": parallel.pipeline_parallel_size,
        "data": parallel.data_parallel_size,
    }
    if many := [f"{kind} parallel size {n}" for kind, n in sizes.items() if n > 1]:
        raise BadConfiguration(
            f"this version protects one engine with one rank, not {', '.join(many)}",
            hint="--no-enable-fault-tolerance serves it unprotected",
        )
    if client_addresses:
        raise BadConfiguration(
            "this version protects one API server", hint="set --api-server-count 1, or --no-enable-fault-tolerance"
        )
    if "holdfast" not in (os.environ.get("VLLM_PLUGINS") or "").split(","):
        raise HookNotAttached(
            "the HTTP endpoints did not attach: the host loads them only by name", hint="set VLLM_PLUGINS=holdfast"
        )


def _protected_executor(vllm_config: Any, executor_class: type) -> type:
    """Our executor in place of the host's; the in-process one gives way, for its worker has no process."""
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    if executor_class not in (MultiprocExecutor, UniProcExecutor):
        raise BadConfiguration(
            f"this version protects the multiprocessing executor, not {executor_class.__name__}",
            hint="--distributed-executor-backend mp, or --no-enable-fault-tolerance",
        )
    vllm_config.parallel_config.distributed_executor_backend = "mp"
    from holdfast.hosts.vllm.executor import HoldfastExecutor

    return HoldfastExecutor


class FrontEnd:
    """Implements `FrontEndHost`. Sockets are bound before any engine core starts."""

    def __init__(self, config: HoldfastConfig, client: Any, make_outlets: MakeOutlets) -> None:
        self._client = weakref.ref(client)
        self.defeat: str | None = None
        self._outlets = make_outlets(config)
        self._folder = tempfile.mkdtemp(prefix="holdfast-")  # 0700: only this user reaches the sockets
        self.config = msgspec.structs.replace(config, runtime_dir=self._folder)
        self.sentinel = ClientSentinel(
            [0],
            self.config,
            self,
            ZmqStation(),
            client_address(self._folder),
            sinks=self._outlets.sinks,
            notify_address=self._outlets.address,
        )
        self._finalizer = weakref.finalize(client, self.close)

    def start(self) -> None:
        """Wait for every process's report. Raises `HookNotAttached` when one is missing or incomplete."""
        self.sentinel.start()
        view = self.sentinel.await_attached(ATTACH_TIMEOUT_S)
        for engine in view.engines:
            if absent := missing((ENGINE_INIT, BUSY_LOOP), engine.hooks):
                raise HookNotAttached(f"engine core {engine.engine_id} did not attach {', '.join(absent)}")
            if absent := missing((WORKER_QUEUES,), engine.worker_hooks):
                raise HookNotAttached(f"a worker of engine core {engine.engine_id} did not attach {', '.join(absent)}")
        self._watch()

    def _watch(self) -> None:
        client = self._client()
        if client is not None:
            manager = client.resources.engine_manager
            threading.Thread(target=self._await_death, args=(manager,), name="EngineCoreWatch", daemon=True).start()

    def _await_death(self, manager: Any) -> None:
        multiprocessing.connection.wait([p.sentinel for p in manager.processes])
        # The host judges first: it knows whether it asked for this, and notes the name of one it did not ask.
        manager.manager_stopped.wait(END_GRACE_S)
        if manager.failed_proc_name is not None and self.defeat is None:
            dead = next(i for i, p in enumerate(manager.processes) if p.name == manager.failed_proc_name)
            self.sentinel.engine_lost(dead, f"exit code {manager.processes[dead].exitcode}")

    def end_instance(self, reason: str) -> None:
        """The engine core was told to end; one that does not is killed. Does not wait."""
        if self.defeat is None:
            self.defeat = reason
            threading.Thread(target=self._kill_after_grace, name="EngineCoreEnd", daemon=True).start()

    def _kill_after_grace(self) -> None:
        client = self._client()
        if client is None:
            return
        for process in client.resources.engine_manager.processes:
            process.join(END_GRACE_S)
            if process.is_alive() and process.pid is not None:
                logger.error("engine core pid %d did not end within %g s; killing it", process.pid, END_GRACE_S)
                os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.sentinel.close()
        self._outlets.close()
        shutil.rmtree(self._folder, ignore_errors=True)
