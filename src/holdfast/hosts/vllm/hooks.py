"""Hooks of the host's front end: ownership of the engine cores, and service of requests.

The process that launches the engine cores becomes their owner (`VllmFrontEndHost`); every API server in a process of
its own gets a link to the owner. Fails closed: a topology that this version cannot protect is refused before any
process starts.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.errors import BadConfiguration, HookNotAttached
from holdfast.core.ports import ControlPlane
from holdfast.core.protocol.events import InstanceView
from holdfast.hosts.vllm.communicators.rendezvous import HOST
from holdfast.hosts.vllm.contract.front_end_touchpoints import (
    AWAIT_END,
    CLIENT_INIT,
    GREET,
    HEADLESS_EXECUTOR,
    IN_PROCESS_INIT,
    LAUNCH_IN_CLIENT,
    LAUNCH_IN_LAUNCHER,
    OFFLINE_CLIENT_INIT,
    OFFLINE_OUTPUT,
    ROUTE,
    SERVE_HEADLESS,
    SERVE_HTTP,
    START_API_SERVERS,
    START_COORDINATOR,
    START_ENGINES,
    WATCH_ENGINES,
)
from holdfast.hosts.vllm.contract.hooks import attach, attached
from holdfast.hosts.vllm.contract.name_touchpoints import DIRECT_TENSORS, SHARED_TENSORS
from holdfast.hosts.vllm.contract.topology import (
    UNPROTECTED,
    lockstep_groups,
    refuse_other_front_ends,
    refuse_unprotected,
)
from holdfast.hosts.vllm.contract.versions import refuse_unknown_host
from holdfast.hosts.vllm.owner.api_servers import save_api_server_arguments
from holdfast.hosts.vllm.owner.coordinator import save_coordinator_arguments
from holdfast.hosts.vllm.owner.engine_spawning import save_engine_arguments
from holdfast.hosts.vllm.owner.exit import end_start_on_signal
from holdfast.hosts.vllm.owner.owner import LINK_TIMEOUT_S, OpenSinks, VllmFrontEndHost, current_owner
from holdfast.hosts.vllm.process.members import record_sockets
from holdfast.hosts.vllm.process.nodes import refuse_open_wire, resolved, spawn_processes
from holdfast.hosts.vllm.process.output import never_block_output
from holdfast.hosts.vllm.process.settings import asks_for_protection, handed_down, inherited_settings, take_settings
from holdfast.hosts.vllm.serving.client_hooks import attach_client_hooks, protect_clients, request_router, serve_until
from holdfast.hosts.vllm.serving.offline import end_with_instance, refuse_in_process, say_why
from holdfast.hosts.vllm.serving.takeover import Takeover, greet_engine_cores
from holdfast.hosts.vllm.serving.traced_requests import trace_headers
from holdfast.sentinel import FrontEndLink
from holdfast.sentinel.thread import client_address
from holdfast.wire import ZmqStation

logger = logging.getLogger("holdfast")

OWNER_TIMEOUT_S = LINK_TIMEOUT_S  # the owner waits as long for all API servers to start

Launch = Callable[..., AbstractContextManager[Any]]
CountLinks = Callable[[Any], int]

# Link to the owner, in an API server that does not own the engine cores.
_current_link: FrontEndLink | None = None


def current_control() -> ControlPlane | None:
    """Return the control plane of the served instance, or None when the process is not protected."""
    owner = current_owner()
    return owner.sentinel if owner is not None else _current_link


def attach_front_end_hooks(open_sinks: OpenSinks) -> None:
    """Attach the hooks of a process that may own engine cores."""
    attach(LAUNCH_IN_CLIENT, functools.partial(_launch_protected, open_sinks, lambda addresses: 0))
    attach(WATCH_ENGINES, _watch_engines)
    attach(START_ENGINES, save_engine_arguments)
    attach(START_COORDINATOR, save_coordinator_arguments)
    attach(START_API_SERVERS, save_api_server_arguments)
    attach_request_hooks()
    attach(OFFLINE_CLIENT_INIT, _init_offline_client)
    attach(IN_PROCESS_INIT, refuse_in_process)
    attach(OFFLINE_OUTPUT, say_why)
    if LAUNCH_IN_LAUNCHER.module in sys.modules:  # the host imports its command before any plugin
        attach(LAUNCH_IN_LAUNCHER, functools.partial(_launch_protected, open_sinks, _one_for_each_input))
        attach(AWAIT_END, _await_end)
        attach(SERVE_HEADLESS, _run_headless)


def _one_for_each_input(addresses: Any) -> int:
    """Return the number of API servers that the launcher starts: the number of input sockets."""
    return len(addresses.inputs)


def attach_request_hooks() -> None:
    """Attach the hooks of a process that may serve requests."""
    attach(CLIENT_INIT, _init_client)
    attach(GREET, greet_engine_cores)
    attach(ROUTE, _route)
    attach_client_hooks()


# ---- ownership of the engine cores


@contextmanager
def _launch_protected(
    open_sinks: OpenSinks, count_links: CountLinks, original: Launch, *args: Any, **kwargs: Any
) -> Iterator[Any]:
    bound = inspect.signature(original).bind(*args, **kwargs)
    vllm_config = bound.arguments["vllm_config"]
    config = take_settings(vllm_config)
    if config is None or not config.enable_fault_tolerance:
        with original(*bound.args, **bound.kwargs) as launch:
            yield launch
        return
    _prepare(config, bound.arguments)
    if SERVE_HTTP.module in sys.modules or LAUNCH_IN_LAUNCHER.module in sys.modules:
        never_block_output()  # of a server only: the output of a program around `vllm.LLM` is the program's
    parallel = vllm_config.parallel_config
    owner = VllmFrontEndHost(
        msgspec.structs.replace(config, node_count=parallel.nnodes),
        lockstep_groups(vllm_config),
        count_links(bound.arguments["addresses"]),
        open_sinks,
        address=resolved(parallel.master_addr) if parallel.nnodes > 1 else HOST,
    )
    addresses = bound.arguments["addresses"]
    record_sockets(owner.config.runtime_dir, (*addresses.inputs, *addresses.outputs))
    restore_signals = end_start_on_signal(owner)
    with _closed_on_failure(owner):
        with handed_down(owner.config), original(*bound.args, **bound.kwargs) as launch:
            owner.adopt(launch)
            yield launch
        owner.start(launch.watched_frontend_processes)
    if count_links(bound.arguments["addresses"]):
        restore_signals()  # the host's launcher ends all processes in order from here on
    protect_clients(owner.config)


def _prepare(config: HoldfastConfig, launch: dict[str, Any]) -> None:
    """Refuse an unprotected topology, and put the protected executor into the arguments of the launch."""
    vllm_config = launch["vllm_config"]
    refuse_unknown_host(allowed=config.allow_unknown_host)
    refuse_unprotected(vllm_config)
    refuse_other_front_ends()
    if vllm_config.parallel_config.nnodes > 1:
        refuse_open_wire(config, vllm_config.parallel_config.master_addr)
        spawn_processes()
    launch["executor_class"] = _protected_executor(vllm_config, launch["executor_class"])
    if config.gloo_comm_timeout_s is not None:
        vllm_config.parallel_config.cpu_distributed_timeout_seconds = max(1, round(config.gloo_comm_timeout_s))
    _send_tensors_directly(vllm_config.model_config.multimodal_config)


def _send_tensors_directly(multimodal: Any) -> None:
    """Have tensors sent with their request: a killed engine core may leave the host's queue of tensors locked."""
    if multimodal is not None and multimodal.mm_tensor_ipc == SHARED_TENSORS:
        multimodal.mm_tensor_ipc = DIRECT_TENSORS
        logger.warning("--mm-tensor-ipc %s is not used: it does not outlive an engine core", SHARED_TENSORS)


def _protected_executor(vllm_config: Any, executor_class: type) -> type:
    """Return the executor class of a protected engine core; the host's in-process executor is replaced as well.

    Raises:
        BadConfiguration: the host was given an executor that cannot be protected.
    """
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


@contextmanager
def _closed_on_failure(owner: VllmFrontEndHost) -> Iterator[None]:
    try:
        yield
    except BaseException:
        owner.abort_start()
        raise


def _watch_engines(original: Callable[[Any], None], manager: Any) -> None:
    owner = current_owner()
    if owner is not None and owner.owns(manager):
        owner.await_fatal_exit(manager)
    original(manager)


def _await_end(original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Wait in the host's launcher of several API servers, which ends all processes after a return or an error here."""
    bound = inspect.signature(original).bind(*args, **kwargs)
    owner = current_owner()
    if owner is None or not owner.owns(bound.arguments.get("engine_manager")):
        original(*bound.args, **bound.kwargs)
        return
    try:
        original(**owner.proxies(bound.arguments))
    finally:
        owner.expect_end()


def _run_headless(original: Callable[[Any], None], args: Any) -> None:
    """Run the workers of a further node under an agent; refuse engine cores without an API server."""
    if not asks_for_protection(args):
        original(args)
        return
    if args.nnodes == 1 or args.data_parallel_size > 1:
        raise BadConfiguration("this version does not protect engine cores without an API server", hint=UNPROTECTED)
    refuse_unknown_host()
    never_block_output()
    spawn_processes()
    from holdfast.hosts.vllm.agent.executor import NodeExecutor

    module = sys.modules[HEADLESS_EXECUTOR.module]
    setattr(module, HEADLESS_EXECUTOR.name, NodeExecutor)
    original(args)


# ---- service of requests


def _init_client(original: Callable[..., None], client: Any, *args: Any, **kwargs: Any) -> None:
    bound = inspect.signature(original).bind(client, *args, **kwargs)
    if not bound.arguments.get("client_addresses"):
        original(*bound.args, **bound.kwargs)  # launches engine cores of its own
        _serve_for_owner(client, current_owner())
        return
    config = take_settings(bound.arguments["vllm_config"])
    make = functools.partial(original, *bound.args, **bound.kwargs)
    if config is None or not config.enable_fault_tolerance:
        make()
        return
    link_id = bound.arguments.get("client_index", 0)
    if bound.arguments["client_addresses"].get("input_listener") is None:
        _take_over(make, client, link_id)
        return
    make()
    link = _make_link(link_id)
    _serve_through(link, client)
    link.start(attached())
    link.await_attached(OWNER_TIMEOUT_S)


def _init_offline_client(original: Callable[..., None], client: Any, *args: Any, **kwargs: Any) -> None:
    original(client, *args, **kwargs)
    owner = current_owner()
    if owner is not None and owner.owns(client.resources.engine_manager):
        end_with_instance(client, owner.sentinel.tell)


def _take_over(make: Callable[[], None], client: Any, link_id: int) -> None:
    """Make the client of a replacement API server.

    The link comes first: the state of the engine cores must be known before they are asked whether they are ready.
    """
    link = _make_link(link_id)
    link.start(attached())
    link.await_attached(OWNER_TIMEOUT_S)
    takeover = Takeover(link, link_id, link.config.engine_start_timeout_s)
    with takeover.making(client):
        make()
    if (router := request_router(client)) is not None:
        router.assume_restarts(takeover.restarts)
    _serve_through(link, client)
    _follow(weakref.ref(client), link.view())


def _serve_for_owner(client: Any, owner: VllmFrontEndHost | None) -> None:
    """Connect a client to the owner in the same process."""
    router = request_router(client)
    if owner is not None and router is not None:
        serve_until(lambda: owner.defeat is not None)
        owner.sentinel.tell(router.follow)
        router.on_poison = owner.sentinel.poison_request_ended
        router.guilty.report = owner.sentinel.tell_of_guilt
        router.follow(owner.sentinel.view())
        owner.incidents.traces.open_requests = functools.partial(trace_headers, router.journal)
        owner.serves = True


def _make_link(link_id: int) -> FrontEndLink:
    config = inherited_settings()
    if config is None:
        raise HookNotAttached("Holdfast's settings are missing: its hooks did not attach in the launcher")
    return FrontEndLink(link_id, config, ZmqStation(), client_address(config.runtime_dir))


def _serve_through(link: FrontEndLink, client: Any) -> None:
    global _current_link
    weakref.finalize(client, link.close)
    serve_until(lambda: link.view().defeat is not None)
    link.tell(functools.partial(_follow, weakref.ref(client)))
    if (router := request_router(client)) is not None:
        router.on_poison = link.poison_request_ended
        router.guilty.report = link.tell_of_guilt
    _current_link = link


def _follow(client: Callable[[], Any], view: InstanceView) -> None:
    live_client = client()
    router = request_router(live_client) if live_client is not None else None
    if router is not None:
        router.follow(view)
    _end_with_instance(client, view)


def _end_with_instance(client: Callable[[], Any], view: InstanceView) -> None:
    """End open requests with an error when the instance is defeated; no engine core may be left to do so."""
    live_client = client() if view.defeat is not None else None
    task = live_client.resources.output_queue_task if live_client is not None else None
    if task is not None and not task.done():
        # The host turns the end of this task into an error of every open request.
        task.get_loop().call_soon_threadsafe(task.cancel)


def _route(original: Callable[..., bytes], client: Any, request: Any) -> bytes:
    control, router = current_control(), request_router(client)
    if control is None or router is None:
        return original(client, request)
    return router.route(functools.partial(original, client), client, request, control.view())
