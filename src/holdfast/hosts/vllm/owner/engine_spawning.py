"""Start of a replacement of an engine core, as the host started the first process.

The host's own manager starts the process and the host's own handshake waits for it, with the arguments of the first
launch as they were before anything changed them. Knows nothing of requests.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.owner.standby_engines import StandbyEngine
from holdfast.hosts.vllm.process.bootstrap import Bootstrap, bootstrapped
from holdfast.hosts.vllm.process.lifecycle import hurry_tree, kill_tree, spawning
from holdfast.hosts.vllm.process.settings import Heritage, inherited_settings, inherited_variables
from holdfast.hosts.vllm.process.sockets import empty_folder
from holdfast.hosts.vllm.process.standby_engine_main import standby_engine_main

BACKGROUND_S = 60.0  # then the missing capacity costs more than the disturbance of a sibling


@dataclass(frozen=True)
class Launch:
    """Arguments and addresses with which the host started the engine cores.

    `context` of ZeroMQ is from before the start: a new context ends this process where no file descriptor is left.
    """

    arguments: dict[str, Any]
    coordinator: Any
    addresses: Any
    tensor_queue: Any
    context: Any

    @classmethod
    def of(cls, launch: Any, context: Any) -> Launch:
        """Read the host's own record of a launch."""
        saved = launch.engine_manager.holdfast_arguments
        return cls(saved, launch.coordinator, launch.addresses, launch.tensor_queue, context)

    def arguments_for(self, index: int, handshake_address: str, *, alone: bool) -> dict[str, Any]:
        """Return the arguments of one engine core; with `alone` the process meets no peers as it starts."""
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
    """Keep the arguments of the host's manager, around `__init__`, for replacements."""
    config = inherited_settings()
    if config is None:
        original(manager, *args, **kwargs)
        return
    from vllm.utils.system_utils import get_mp_context

    bound = inspect.signature(original).bind(manager, *args, **kwargs)
    arguments = dict(list(bound.arguments.items())[1:])
    manager.holdfast_arguments = {**arguments, "vllm_config": copy.deepcopy(arguments["vllm_config"])}
    with bootstrapped(get_mp_context(), background=False, forks=config.standby_workers > 0):
        original(manager, *args, **kwargs)


def start_engine_core(
    launch: Launch,
    index: int,
    config: HoldfastConfig,
    on_started: Callable[[Any], None],
    heritage: Heritage,
    *,
    background: bool = False,
    standby: StandbyEngine | None = None,
) -> None:
    """Start the engine core with the given index and wait until the process is ready.

    Args:
        on_started: is given the process at once.
        heritage: what the engine core takes over from the one that it replaces.
        standby: becomes the engine core; without one a process is started.
        background: leave the processors to serving siblings, for `BACKGROUND_S` at most.

    Raises:
        Exception: the engine core is not ready within the engine start timeout; it may still be running then.
    """
    from vllm.utils.system_utils import get_mp_context
    from vllm.v1.engine.utils import CoreEngine, CoreEngineLaunch, CoreEngineProcManager, wait_for_engine_startup

    sockets = empty_folder(config.runtime_dir, index)
    address = f"ipc://{sockets}/handshake"
    arguments = launch.arguments_for(index, address, alone=heritage.joins_epoch is not None)
    parallel = copy.copy(arguments["vllm_config"].parallel_config)
    parallel.data_parallel_size_local = 1
    with _listening(launch.context, address) as handshake:
        if standby is not None:
            standby.replace(inherited_variables(config, heritage, sockets), address)
            manager = SimpleNamespace(processes=[standby.process], sentinels=lambda: [standby.process.sentinel])
        else:
            inherited = spawning(config, heritage, sockets)
            forks = config.standby_workers > 0
            with inherited, bootstrapped(get_mp_context(), background=background, forks=forks):
                manager = CoreEngineProcManager(**arguments)
            manager._finalizer.detach()  # the process belongs to the first manager from now on
        # Looking at an exit code takes it out of the process table, where the host's own shutdown fails without it.
        manager.finished_procs = lambda: {"the replacement": "ended"}
        on_started(manager.processes[0])
        # Without the coordinator: after its death a replacement binds the same addresses.
        one = CoreEngineLaunch(manager, None, launch.addresses, launch.tensor_queue)
        cache = copy.deepcopy(launch.arguments["vllm_config"].cache_config)
        pid = manager.processes[0].pid
        with _after(config.engine_start_timeout_s, kill_tree, pid), _hurried_after(pid):
            wait_for_engine_startup(
                handshake, [CoreEngine(index=arguments["start_index"], local=True)], parallel, False, cache, one
            )


def start_standby_engine(launch: Launch, config: HoldfastConfig) -> StandbyEngine:
    """Start a process that waits until it replaces the only engine core of an instance."""
    from vllm.utils.system_utils import get_mp_context

    kept = ("vllm_config", "local_client", "executor_class", "log_stats", "tensor_queue")
    arguments = {name: value for name, value in launch.arguments_for(0, "", alone=False).items() if name in kept}
    context = get_mp_context()
    ours, theirs = context.Pipe()
    main = Bootstrap(standby_engine_main, background=True, paced=True, forks=config.standby_workers > 0)
    with spawning(config):
        process = context.Process(target=main, name="EngineCore", kwargs={**arguments, "orders": theirs})
        process.start()
    theirs.close()
    return StandbyEngine(process, ours)


def takes_standby_engines(launch: Launch) -> bool:
    """Return whether a standby can take the place of an engine core: there is one, and it is bound to no node."""
    parallel = launch.arguments["vllm_config"].parallel_config
    is_alone = parallel.data_parallel_size == 1 and parallel.nnodes == 1
    return is_alone and not parallel.numa_bind and launch.arguments.get("client_handshake_address") is None


@contextlib.contextmanager
def _listening(context: Any, address: str) -> Iterator[Any]:
    import zmq
    from vllm.utils.network_utils import make_zmq_socket

    handshake = make_zmq_socket(context, address, zmq.ROUTER, bind=True)
    try:
        yield handshake
    finally:
        handshake.close(linger=0)


@contextlib.contextmanager
def _hurried_after(pid: int) -> Iterator[None]:
    """Give an engine core and the workers ordinary priority after the block, or after `BACKGROUND_S`."""
    with _after(BACKGROUND_S, hurry_tree, pid):
        try:
            yield
        finally:
            hurry_tree(pid)


@contextlib.contextmanager
def _after(seconds: float, act: Callable[[int], None], pid: int) -> Iterator[None]:
    """Call `act` with `pid` after so many seconds, unless the block has ended by then."""
    timer = threading.Timer(seconds, act, [pid])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
