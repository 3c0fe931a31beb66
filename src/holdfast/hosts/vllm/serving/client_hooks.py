"""Hooks of the host's client of engine cores, which every request and every output passes.

Attached in every process that may serve requests; without a protected instance each hook calls the host's original.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.contract.front_end_touchpoints import (
    ABORT,
    ABORT_BALANCED,
    ADD,
    ADD_DATA_PARALLEL,
    CALL_EVERY_UTILITY,
    CALL_UTILITY,
    PROCESS_INPUTS,
    PROCESSOR_CACHE_KIND,
    RECEIVE,
    VALIDATE_ALIVE,
)
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.contract.name_touchpoints import ENGINE_CORE_DEAD, ONE_CACHE, STATE_CALLS
from holdfast.hosts.vllm.process.settings import asks_for_protection, inherited_settings
from holdfast.hosts.vllm.serving.error_reasons import attach_error_reasons
from holdfast.hosts.vllm.serving.lost_engines import EngineLost
from holdfast.hosts.vllm.serving.request_checks import check_inputs
from holdfast.hosts.vllm.serving.request_router import RequestRouter

_NAME = "holdfast"

# Settings of the instance that this process owns; a process with another owner inherits them.
_own_config: HoldfastConfig | None = None


def _no_instance() -> bool:
    return True


# Whether the instance has ended; without an instance the host judges every death notice itself.
_has_ended: Callable[[], bool] = _no_instance


def attach_client_hooks() -> None:
    """Attach every hook of the host's client."""
    attach(ADD, _add)
    attach(ADD_DATA_PARALLEL, _add)
    attach(PROCESS_INPUTS, _process_inputs)
    attach(ABORT, _abort)
    attach(ABORT_BALANCED, _abort)
    attach(RECEIVE, _receive)
    attach(VALIDATE_ALIVE, _validate_alive)
    attach(CALL_UTILITY, _call_utility)
    attach(CALL_EVERY_UTILITY, _call_every_utility)
    attach(PROCESSOR_CACHE_KIND, _processor_cache_kind)


def request_router(client: Any) -> RequestRouter | None:
    """Return the router of a client's requests, made at the first call; None when the client is not protected."""
    known: RequestRouter | None = client.__dict__.get(_NAME)
    if known is None and (config := _own_config or inherited_settings()) is not None:
        known = client.__dict__[_NAME] = RequestRouter(
            client,
            detects_poison=config.poison_detection,
            state_call_timeout_s=config.engine_start_timeout_s,
            max_input_bytes=config.max_journal_mib * 2**20,
        )
    return known


def protect_clients(config: HoldfastConfig) -> None:
    """Protect all clients made from now on; `config` is of the instance that the process owns."""
    global _own_config
    _own_config = config


def serve_until(has_ended: Callable[[], bool]) -> None:
    """Ignore death notices of engine cores until `has_ended` returns True."""
    global _has_ended
    _has_ended = has_ended


async def _add(original: Callable[..., Awaitable[None]], client: Any, request: Any) -> None:
    router = request_router(client)
    if router is None:
        await original(client, request)
    else:
        await router.add(original, client, request)


def _process_inputs(original: Callable[..., Any], processor: Any, *args: Any, **kwargs: Any) -> Any:
    if _own_config is None and inherited_settings() is None:
        return original(processor, *args, **kwargs)
    return check_inputs(original, processor, *args, **kwargs)


def _processor_cache_kind(original: Callable[[Any], str | None], vllm_config: Any) -> str | None:
    """Return the kind of the cache of processed multimodal inputs: in a protected instance, the front end's alone.

    With a second cache, in the engine core or in shared memory, a request names inputs that only the lost process had.
    """
    kind = original(vllm_config)
    is_protected = _own_config is not None or inherited_settings() is not None or asks_for_protection(vllm_config)
    return ONE_CACHE if kind is not None and is_protected else kind


async def _abort(original: Callable[..., Awaitable[None]], client: Any, request_ids: Sequence[str]) -> None:
    router = request_router(client)
    if router is None:
        await original(client, request_ids)
    else:
        await router.abort(original, client, request_ids)


def _receive(original: Callable[[Any], None], client: Any) -> None:
    if client.resources.output_queue_task is None and (router := request_router(client)) is not None:
        attach_error_reasons()
        router.bind(asyncio.get_running_loop())
        client.decoder = _Decoder(client.decoder, router)
    original(client)


class _Decoder:
    """The client's decoder of outputs, which also records the outputs as delivered."""

    def __init__(self, decoder: Any, router: RequestRouter) -> None:
        self._decoder = decoder
        self._router = router

    def decode(self, frames: Any) -> Any:
        if _is_death_notice(frames):
            from vllm.v1.engine import EngineCoreOutputs

            return EngineCoreOutputs()
        return self._router.deliver(self._decoder.decode(frames))


def _is_death_notice(frames: Sequence[Any]) -> bool:
    """Return whether a message is the host's notice that an engine core has died."""
    return len(frames) == 1 and bytes(frames[0].buffer) == ENGINE_CORE_DEAD


def _validate_alive(original: Callable[..., None], resources: Any, frames: Sequence[Any]) -> None:
    """Hide death notices from the host's client while the instance lives: the owner judges deaths."""
    if _has_ended() or not _is_death_notice(frames):
        original(resources, frames)


async def _call_utility(
    original: Callable[..., Awaitable[Any]], client: Any, method: str, *args: Any, engine: bytes
) -> Any:
    router = request_router(client)
    if router is None:
        return await original(client, method, *args, engine=engine)
    if method in STATE_CALLS:
        return await router.set_state(lambda: original(client, method, *args, engine=engine), engine)
    return await router.call_utility(lambda: original(client, method, *args, engine=engine), engine)


async def _call_every_utility(
    original: Callable[..., Awaitable[list[Any]]], client: Any, method: str, *args: Any
) -> list[Any]:
    """Call every engine core that is not lost, and return the results. A call that sets state waits for the lost."""
    router = request_router(client)
    if router is not None and method in STATE_CALLS:
        return await _set_every_state(client, method, *args)
    if router is None or not any(map(router.is_lost, client.core_engines)):
        return await original(client, method, *args)
    present = [engine for engine in client.core_engines if not router.is_lost(engine)]
    if not present:
        raise EngineLost("every engine core is lost; a replacement is being started")
    return list(await asyncio.gather(*(client._call_utility_async(method, *args, engine=e) for e in present)))


async def _set_every_state(client: Any, method: str, *args: Any) -> list[Any]:
    """Set state in every engine core but those that are left out, which take the state over from a sibling later."""
    calls = (client._call_utility_async(method, *args, engine=engine) for engine in client.core_engines)
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    failures = [error for error in errors if not isinstance(error, EngineLost)]
    if failures or len(errors) == len(results):
        raise (failures or errors)[0]
    return [result for result in results if not isinstance(result, BaseException)]
