"""The choice of an engine core for a request while some engine cores are paused, lost or left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.core.protocol.events import InstanceView
from holdfast.hosts.vllm.serving.lost_engines import LostEngines, makes_progress


def choose_engine_core(
    choose: Callable[[Any], bytes], client: Any, request: Any, view: InstanceView, is_lost: Callable[[bytes], bool]
) -> bytes:
    """Return the identity of the engine core for `request`, and correct the client's counts.

    The host balances by load only, and a paused engine core looks idle. The host's choice stands for a request
    that names a rank, and while no engine core makes progress: the request then waits where it was sent.
    """
    is_bound = request.data_parallel_rank is not None or request.request_id in client.reqs_in_flight
    chosen = choose(request)
    if is_bound or (makes_progress(view, client, chosen) and not is_lost(chosen)):
        return chosen
    present = [engine for engine in client.core_engines if not is_lost(engine)]
    others = [engine for engine in present if makes_progress(view, client, engine)]
    if is_lost(chosen):
        others = others or present  # a request waits at a paused engine core
    if not others:
        return chosen
    other: bytes = min(others, key=lambda engine: client.engine_inflight[engine])
    client.engine_inflight[chosen] -= 1
    client.engine_inflight[other] += 1
    client.reqs_in_flight[request.request_id] = other
    return other


def has_taker(client: Any, request: Any, lost: LostEngines) -> bool:
    """Return whether an engine core can take a request now."""
    if not lost:
        return True
    if not hasattr(client, "reqs_in_flight"):
        return client.core_engine not in lost
    if request.data_parallel_rank is not None:
        return client.core_engines[request.data_parallel_rank] not in lost
    return any(engine not in lost for engine in client.core_engines)


def unpin(client: Any, request: Any, lost: LostEngines) -> None:
    """Clear the rank that a request names while the engine core of that rank is left out."""
    named = request.data_parallel_rank
    if named in range(len(client.core_engines)) and lost.is_left_out(client.core_engines[named]):
        request.data_parallel_rank = None


def engine_of(client: Any, request_id: str) -> bytes | None:
    """Return the identity of the engine core that the client has sent a request to; None for an unknown request."""
    engine: bytes | None = (
        client.reqs_in_flight.get(request_id) if hasattr(client, "reqs_in_flight") else client.core_engine
    )
    return engine
