"""Where a new request goes while some engines stand still: to one that makes progress, if there is any.

The host balances by load only, and a paused engine looks idle. Its own choice stands wherever the request
itself names its engine, and wherever nobody makes progress: then the request waits where it was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.core.protocol.events import InstanceView


def route_around_paused(
    choose: Callable[[Any], bytes],
    client: Any,
    request: Any,
    view: InstanceView,
    is_lost: Callable[[bytes], bool] = lambda engine: False,
) -> bytes:
    """The identity of the engine core that `request` is sent to; kept in the client's books."""
    is_bound = request.data_parallel_rank is not None or request.request_id in client.reqs_in_flight
    chosen = choose(request)
    if is_bound or (_makes_progress(view, client, chosen) and not is_lost(chosen)):
        return chosen
    there = [engine for engine in client.core_engines if not is_lost(engine)]
    others = [engine for engine in there if _makes_progress(view, client, engine)]
    if is_lost(chosen):
        others = others or there  # what is sent to an engine that stands still waits there
    if not others:
        return chosen
    other: bytes = min(others, key=lambda engine: client.engine_inflight[engine])
    client.engine_inflight[chosen] -= 1
    client.engine_inflight[other] += 1
    client.reqs_in_flight[request.request_id] = other
    return other


def _makes_progress(view: InstanceView, client: Any, engine: bytes) -> bool:
    seen = view.engine(client.core_engines.index(engine))
    return seen is None or seen.state.makes_progress
