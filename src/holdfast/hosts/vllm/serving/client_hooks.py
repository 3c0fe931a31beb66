"""The hooks of the host's client of engine cores: every request passes here on its way, and every output.

Attached in every process that may serve requests; without a protected instance each of them does nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from holdfast.hosts.vllm.contract.front_end_touchpoints import (
    ABORT,
    ABORT_BALANCED,
    ADD,
    ADD_DATA_PARALLEL,
    CALL_EVERY_UTILITY,
    CALL_UTILITY,
    RECEIVE,
    VALIDATE_ALIVE,
)
from holdfast.hosts.vllm.contract.hooks import attach
from holdfast.hosts.vllm.owner.owner import current_owner
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.serving.error_reasons import attach_error_reasons
from holdfast.hosts.vllm.serving.lost_engines import EngineLost
from holdfast.hosts.vllm.serving.request_router import RequestRouter

_NAME = "holdfast"

# Whether the instance has ended; before it is known, every last word counts.
_ends: list[Callable[[], bool]] = []


def attach_client_hooks() -> None:
    attach(ADD, _add)
    attach(ADD_DATA_PARALLEL, _add)
    attach(ABORT, _abort)
    attach(ABORT_BALANCED, _abort)
    attach(RECEIVE, _receive)
    attach(VALIDATE_ALIVE, _validate_alive)
    attach(CALL_UTILITY, _call_utility)
    attach(CALL_EVERY_UTILITY, _call_every_utility)


def request_router(client: Any) -> RequestRouter | None:
    """The open requests of a client; none where it is not protected."""
    known: RequestRouter | None = client.__dict__.get(_NAME)
    if known is None and (current_owner() is not None or inherited_settings() is not None):
        known = client.__dict__[_NAME] = RequestRouter(client, detects_poison=_detects_poison())
    return known


def _detects_poison() -> bool:
    owner = current_owner()
    config = owner.config if owner is not None else inherited_settings()
    return config is not None and config.poison_detection


def serve_until(has_ended: Callable[[], bool]) -> None:
    """The last word of an engine core is no news until the instance has ended."""
    _ends[:] = [has_ended]


async def _add(original: Callable[..., Awaitable[None]], client: Any, request: Any) -> None:
    router = request_router(client)
    if router is None:
        await original(client, request)
    else:
        await router.add(original, client, request)


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
    """The client's decoder of outputs. What it returns has been taken note of."""

    def __init__(self, decoder: Any, router: RequestRouter) -> None:
        self._decoder = decoder
        self._router = router

    def decode(self, frames: Any) -> Any:
        if _is_last_word(frames):
            from vllm.v1.engine import EngineCoreOutputs

            return EngineCoreOutputs()
        return self._router.deliver(self._decoder.decode(frames))


def _is_last_word(frames: Sequence[Any]) -> bool:
    return len(frames) == 1 and bytes(frames[0].buffer) == b"ENGINE_CORE_DEAD"


def _validate_alive(original: Callable[..., None], resources: Any, frames: Sequence[Any]) -> None:
    """That an engine core has ended is for its owner to judge: it sees the process."""
    if all(has_ended() for has_ended in _ends) or not _is_last_word(frames):
        original(resources, frames)


async def _call_utility(
    original: Callable[..., Awaitable[Any]], client: Any, method: str, *args: Any, engine: bytes
) -> Any:
    router = request_router(client)
    if router is None:
        return await original(client, method, *args, engine=engine)
    return await router.call_utility(lambda: original(client, method, *args, engine=engine), engine)


async def _call_every_utility(
    original: Callable[..., Awaitable[list[Any]]], client: Any, method: str, *args: Any
) -> list[Any]:
    """One result for each engine core that is there."""
    router = request_router(client)
    if router is None or not any(map(router.is_lost, client.core_engines)):
        return await original(client, method, *args)
    there = [engine for engine in client.core_engines if not router.is_lost(engine)]
    if not there:
        raise EngineLost("no engine core is there, another one is being started")
    return list(await asyncio.gather(*(client._call_utility_async(method, *args, engine=e) for e in there)))
