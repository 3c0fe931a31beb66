"""The client of `vllm.LLM`, which waits without a bound for outputs and answers of its engine core.

Requests of such a client move to no other engine core. When the instance ends, each wait ends with an error that names
the reason; in plain vLLM the program hangs for ever after its engine core was killed.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from holdfast.core.errors import BadConfiguration
from holdfast.core.protocol.events import InstanceView
from holdfast.hosts.vllm.process.settings import asks_for_protection

_WHY = "holdfast_ended"


def end_with_instance(client: Any, tell: Callable[[Callable[[InstanceView], None]], None]) -> None:
    """End the waits of a client when its instance is defeated, as the views say that `tell` gives."""
    tell(functools.partial(_follow, weakref.ref(client)))


def _follow(client: Callable[[], Any], view: InstanceView) -> None:
    live_client = client()
    if live_client is None or view.defeat is None or live_client.resources.engine_dead:
        return
    vars(live_client)[_WHY] = view.defeat
    live_client.resources.engine_dead = True  # later calls raise at once
    live_client.outputs_queue.put_nowait(_error(view.defeat))
    for answer in list(live_client.utility_results.values()):
        if not answer.done():
            answer.set_exception(_error(view.defeat))


def say_why(original: Callable[[Any], Any], client: Any) -> Any:
    """Return the next outputs; let the host's error of a dead engine core name the reason of the end."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return original(client)
    except EngineDeadError:
        if (reason := vars(client).get(_WHY)) is None:
            raise
        raise _error(reason) from None


def _error(reason: str) -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    error = EngineDeadError(suppress_context=True)
    error.args = (f"the engine core has ended: {reason}",)
    return error


def refuse_in_process(original: Callable[..., None], client: Any, *args: Any, **kwargs: Any) -> None:
    """Raise `BadConfiguration` when an engine core in the caller's process is to be protected."""
    bound = inspect.signature(original).bind(client, *args, **kwargs)
    if asks_for_protection(bound.arguments["vllm_config"]):
        raise BadConfiguration(
            "this version does not protect an engine core in the caller's own process",
            hint="unset VLLM_ENABLE_V1_MULTIPROCESSING, or set enable_fault_tolerance to false",
        )
    original(*bound.args, **bound.kwargs)
