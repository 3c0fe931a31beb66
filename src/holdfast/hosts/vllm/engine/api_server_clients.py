"""What an engine core does for API servers that come and go.

It computes for a client until that takes its requests back, and says only once that it is ready: a dead client takes
nothing back, and one that takes a dead one's place would wait for ever. The latter greets, under the name of the one
call that the host answers where messages arrive, so that an engine core answers also while its busy loop is stuck.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import Any

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequestType, UtilityOutput

from holdfast.hosts.vllm.protocol.calls import GREETING

_INPUT_THREAD = "process_input_sockets"

Handle = Callable[[int, int, Any], None]


class _RequestsOf:
    """The requests of a client that are open when somebody looks: on the busy loop, after those that wait before it."""

    def __init__(self, scheduler: Any, client_index: int) -> None:
        self._scheduler = scheduler
        self._client_index = client_index

    def __iter__(self) -> Iterator[str]:
        requests = self._scheduler.requests.values()
        return iter([r.request_id for r in requests if r.client_index == self._client_index])


def drop_requests(engine: Any, client_index: int) -> None:
    """Let nothing more be computed for a client that is gone. Any thread."""
    of_client = _RequestsOf(engine.scheduler, client_index)
    engine.input_queue.put_nowait((EngineCoreRequestType.ABORT, of_client))


def answer_greetings(engine: Any) -> None:
    """Have the input thread answer a client that greets, with what it tells everybody when it starts."""
    sentinel = getattr(engine, "ft_sentinel", None) or SimpleNamespace()
    host_handles: Handle | None = getattr(sentinel, "handle_command", None)

    def handle(client_index: int, call_id: int, what: Any) -> None:
        if what == GREETING:
            drop_requests(engine, client_index)  # its predecessor's: whoever greets has sent none yet
            _say_ready(sys._getframe(1))
        elif host_handles is not None:
            host_handles(client_index, call_id, what)
        else:
            refused = UtilityOutput(call_id, failure_message="fault tolerance of the host's own is off")
            engine.output_queue.put_nowait((client_index, EngineCoreOutputs(utility_output=refused)))

    sentinel.handle_command = handle
    engine.ft_sentinel = sentinel


def _say_ready(frame: FrameType) -> None:
    """On the input thread: its sockets are its own, and known to nobody else."""
    if frame.f_code.co_name != _INPUT_THREAD:
        raise RuntimeError(f"greeted outside of {_INPUT_THREAD}")
    found = frame.f_locals
    found["input_socket"].send_multipart([str(os.getpid()).encode(), found["ready_payload"]])
