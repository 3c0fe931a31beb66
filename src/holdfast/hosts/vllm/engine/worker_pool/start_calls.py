"""The calls with which the host makes a loaded worker ready; a replacement is made ready by the same calls.

Several of them leave something behind in the worker beside their result, such as which layers share a KV cache. The
host's own start is therefore noted as it happens, and nothing is chosen but what is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from holdfast.hosts.vllm.contract.name_touchpoints import MEASURE_ENCODER, MEASURE_MEMORY, READING_CALLS
from holdfast.hosts.vllm.protocol import WorkerCall

# The result is what is wanted of these, and it is known: the replacement gets the cache that was decided on. To measure
# again beside ranks that hold their caches would find too little memory.
MEASURING = (MEASURE_MEMORY, MEASURE_ENCODER)


class StartCalls:
    """The calls of all workers from the start of an engine core until the first request, in order."""

    def __init__(self) -> None:
        self._calls: list[WorkerCall] = []
        self._measured: list[tuple[WorkerCall, Sequence[Any]]] = []
        self.unrepeatable: str = ""  # names a function that was carried out in the workers

    def note(
        self, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], answers: Any = None
    ) -> None:
        """Note a call; the arguments are copied, because the engine core may change them later.

        `answers` of all ranks are kept for a call that measures: a replacement is to give the same one when asked.
        """
        name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
        if name == MEASURE_MEMORY and isinstance(answers, list):
            self._measured.append(((name, copy.deepcopy(args), copy.deepcopy(kwargs)), list(answers)))
        if name in MEASURING or name in READING_CALLS:
            return
        if isinstance(method, str):
            self._calls.append((method, copy.deepcopy(args), copy.deepcopy(kwargs)))
        else:
            self.unrepeatable = name

    def noting(self, call_workers: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call_workers`, the host's call of all workers, with a note of each call."""

        def call(
            method: Any, timeout: float | None = None, args: Any = (), kwargs: Any = None, *more: Any, **options: Any
        ) -> Any:
            result = call_workers(method, timeout, args, kwargs, *more, **options)
            self.note(method, tuple(args), dict(kwargs or {}), result)
            return result

        return call

    def calls(self) -> tuple[WorkerCall, ...]:
        """Return the calls that a replacement carries out, in order."""
        return tuple(self._calls)

    def measured(self) -> tuple[tuple[WorkerCall, Sequence[Any]], ...]:
        """Return the calls that are not repeated and measured something, with the answers of all ranks."""
        return tuple(self._measured)
