"""Names and messages of the calls between an API server, an engine core and its workers.

Imports nothing of the host at import time: a worker that starts alone reads this module before the host.
"""

from __future__ import annotations

from typing import Any

import msgspec

GREETING = "holdfast-greeting"  # an API server asks an engine core to say once more that it is ready
HISTORY = "holdfast_history"  # private key of the sampling parameters: the tokens that were delivered as output
DRAWN = "holdfast_drawn"  # another one: the tokens sampled in earlier turns of a streaming session
ON_TRIAL = "holdfast_on_trial"  # private key of the sampling parameters: the request was found guilty before

# Names under which an engine core's commands are bound to a worker.
JOIN = "holdfast_join"
PREPARE = "holdfast_prepare"
REPEAT = "holdfast_repeat"
ADD_REQUESTS = "holdfast_add_requests"

TOLD_TO_STOP = "it was told to stop"  # reason of a worker's fence that its engine core recognises in an error


WorkerCall = tuple[str, tuple[Any, ...], dict[str, Any]]  # of a method of the host's worker, with arguments


def drawn_before(request: Any) -> int:
    """Return how many tokens were sampled in earlier turns of a streaming session; 0 for any other request."""
    drawn: int = vars(request).get(DRAWN, 0)
    return drawn


def set_drawn_before(request: Any, tokens: int) -> None:
    """Note how many tokens were sampled in earlier turns."""
    vars(request)[DRAWN] = tokens


class QueueHandle(msgspec.Struct, frozen=True):
    """Address of an engine core's broadcast queue: the fields of the host's handle."""

    local_reader_ranks: list[int]
    buffer_handle: tuple[int, int, int, str] | None
    local_subscribe_addr: str | None
    local_notify_addr: str | None
    remote_subscribe_addr: str | None = None
    remote_addr_ipv6: bool = False
    tensor_arena_handle: tuple[int, int, int, str] | None = None


class TakeOver(msgspec.Struct, frozen=True):
    """Become `rank`, and read calls from `queue`."""

    rank: int
    is_driver: bool
    queue: QueueHandle


class JoinCommand(msgspec.Struct, frozen=True):
    """Read from `queue` from now on."""

    nonce: str
    queue: QueueHandle
    timeout_s: float


_take_overs = msgspec.msgpack.Decoder(TakeOver)
_joins = msgspec.msgpack.Decoder(JoinCommand)


def encode(message: TakeOver | JoinCommand) -> bytes:
    """Encode a command to a worker."""
    return msgspec.msgpack.encode(message)


def decode_take_over(data: bytes) -> TakeOver:
    """Decode a `TakeOver`. Raises `msgspec.DecodeError`."""
    return _take_overs.decode(data)


def decode_join(data: bytes) -> JoinCommand:
    """Decode a `JoinCommand`. Raises `msgspec.DecodeError`."""
    return _joins.decode(data)


def to_handle(queue: QueueHandle) -> Any:
    """Return the host's own handle of a queue."""
    from vllm.distributed.device_communicators.shm_broadcast import Handle

    return Handle(**msgspec.structs.asdict(queue))


def of_handle(handle: Any) -> QueueHandle:
    """Return the typed copy of a host's queue handle."""
    fields = msgspec.structs.fields(QueueHandle)
    return QueueHandle(**{field.name: getattr(handle, field.name) for field in fields})
