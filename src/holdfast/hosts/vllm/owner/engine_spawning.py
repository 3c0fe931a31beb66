"""Another process in the place of an engine core that is gone: started as the host started the first one.

The host's own manager starts it and the host's own handshake waits for it, with the arguments of the first
launch as they were before anything changed them. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.bootstrap import Bootstrap
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.sockets import empty_folder
from holdfast.hosts.vllm.process.spawning import spawning
from holdfast.hosts.vllm.process.trees import hurry_tree, kill_tree

BACKGROUND_S = 60.0  # then its capacity is missed more than a sibling is disturbed


@dataclass(frozen=True)
class Launch:
    """What the host started engine cores with."""

    arguments: dict[str, Any]
    coordinator: Any
    addresses: Any
    tensor_queue: Any

    @classmethod
    def of(cls, launch: Any) -> Launch:
        saved = launch.engine_manager.holdfast_arguments
        return cls(saved, launch.coordinator, launch.addresses, launch.tensor_queue)

    def arguments_for(self, index: int, handshake_address: str, *, alone: bool) -> dict[str, Any]:
        """Those for one engine core; `alone` meets nobody as it starts."""
        arguments = {**self.arguments, "vllm_config": copy.deepcopy(self.arguments["vllm_config"])}
        if alone:
            arguments["vllm_config"].parallel_config._coord_store_port = 0
        return arguments | {
            "local_engine_count": 1,
            "start_index": arguments["start_index"] + index,
            "local_start_index": arguments["local_start_index"] + index,
            "handshake_address": handshake_address,
        }


def save_engine_arguments(original: Callable[..., None], manager: Any, *args: Any, **kwargs: Any) -> None:
    """Around the manager's `__init__`: a protected instance may have to start an engine core once more."""
    if inherited_settings() is not None:
        bound = inspect.signature(original).bind(manager, *args, **kwargs)
        arguments = dict(list(bound.arguments.items())[1:])
        manager.holdfast_arguments = {**arguments, "vllm_config": copy.deepcopy(arguments["vllm_config"])}
    original(manager, *args, **kwargs)


def start_engine_core(
    launch: Launch,
    index: int,
    config: HoldfastConfig,
    on_started: Callable[[Any], None],
    joins_epoch: int | None = None,
    *,
    background: bool = False,
) -> None:
    """Start the engine core with this index and wait until it is ready. `on_started` is given its process at once.

    With `joins_epoch` it starts alone: the peers of its lockstep group are met when they are let in together.
    `background`: others serve meanwhile, and it leaves the processors to them for as long as `BACKGROUND_S`.

    Raises: anything, when it does not become ready within the engine start timeout; it may still be running then.
    """
    import zmq
    from vllm.utils.network_utils import zmq_socket_ctx
    from vllm.v1.engine.utils import CoreEngine, CoreEngineLaunch, CoreEngineProcManager, wait_for_engine_startup

    sockets = empty_folder(config.runtime_dir, index)
    address = f"ipc://{sockets}/handshake"
    arguments = launch.arguments_for(index, address, alone=joins_epoch is not None)
    parallel = copy.copy(arguments["vllm_config"].parallel_config)
    parallel.data_parallel_size_local = 1
    with zmq_socket_ctx(address, zmq.ROUTER, bind=True) as handshake:
        with (
            spawning(config, joins_epoch, sockets),
            _background_processes() if background else contextlib.nullcontext(),
        ):
            manager = CoreEngineProcManager(**arguments)
        manager._finalizer.detach()  # its process belongs to the first manager from now on
        # Looking at an exit code takes it out of the process table, where the host's own shutdown fails without it.
        manager.finished_procs = lambda: {"the one that takes its place": "ended"}
        on_started(manager.processes[0])
        # Without the coordinator: its death is no reason to give up, another one comes to the same addresses.
        one = CoreEngineLaunch(manager, None, launch.addresses, launch.tensor_queue)
        cache = copy.deepcopy(launch.arguments["vllm_config"].cache_config)
        pid = manager.processes[0].pid
        with _after(config.engine_start_timeout_s, kill_tree, pid), _hurried_after(pid):
            wait_for_engine_startup(
                handshake, [CoreEngine(index=arguments["start_index"], local=True)], parallel, False, cache, one
            )


@contextlib.contextmanager
def _background_processes() -> Iterator[None]:
    """Processes that the host starts inside start at background priority. One thread at a time: see `spawning`."""
    from vllm.utils.system_utils import get_mp_context

    context = get_mp_context()
    vars(context)["Process"] = lambda **about: type(context).Process(
        **{**about, "target": Bootstrap(about["target"], background=True)}
    )
    try:
        yield
    finally:
        del vars(context)["Process"]


@contextlib.contextmanager
def _hurried_after(pid: int) -> Iterator[None]:
    """It is hurried when it serves, which is after this, or when it has been gentle for long enough."""
    with _after(BACKGROUND_S, hurry_tree, pid):
        try:
            yield
        finally:
            hurry_tree(pid)


@contextlib.contextmanager
def _after(seconds: float, act: Callable[[int], None], pid: int) -> Iterator[None]:
    """Do it to a process, unless what is inside is over by then."""
    timer = threading.Timer(seconds, act, [pid])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
