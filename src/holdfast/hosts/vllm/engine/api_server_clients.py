"""API servers that come and go, as an engine core sees them.

An engine core computes for a client until the client aborts its requests, and reports only once that it is ready. A
dead client aborts nothing, and a replacement API server would wait for the report for ever. A replacement therefore
sends a greeting, as a call that the host answers on the input thread: an engine core answers even while its busy loop
is stuck.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType, UtilityOutput

from holdfast.hosts.vllm.protocol import GREETING

_INPUT_THREAD = "process_input_sockets"


class _RequestsOf:
    """Iterable over the open requests of a client at the time of iteration: on the busy loop, after earlier input."""

    def __init__(self, scheduler: Any, client_index: int) -> None:
        self._scheduler = scheduler
        self._client_index = client_index

    def __iter__(self) -> Iterator[str]:
        requests = self._scheduler.requests.values()
        return iter([r.request_id for r in requests if r.client_index == self._client_index])


def drop_requests(engine: Any, client_index: int) -> None:
    """Abort all requests of a lost client. Any thread."""
    of_client = _RequestsOf(engine.scheduler, client_index)
    engine.input_queue.put_nowait((EngineCoreRequestType.ABORT, of_client))


def answer_greetings(engine: Any) -> None:
    """Have the input thread answer the greeting of a client with the host's report that the engine core is ready."""

    def handle(client_index: int, call_id: int, what: Any) -> None:
        if what == GREETING:
            drop_requests(engine, client_index)  # of the predecessor: a client greets before its first request
            _report_ready(sys._getframe(1))
        else:
            refused = UtilityOutput(call_id, failure_message="fault tolerance of the host's own is off")
            engine.output_queue.put_nowait((client_index, EngineCoreOutputs(utility_output=refused)))

    engine.ft_sentinel = SimpleNamespace(handle_command=handle)


def _report_ready(frame: FrameType) -> None:
    """Send the report over the socket of the input thread, a local variable of the host's method in `frame`."""
    if frame.f_code.co_name != _INPUT_THREAD:
        raise RuntimeError(f"a greeting was handled outside of {_INPUT_THREAD}")
    found = frame.f_locals
    found["input_socket"].send_multipart([str(os.getpid()).encode(), found["ready_payload"]])
