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
OUTLIVE = "holdfast_outlive"

ENDS = b"ends"  # last word of an engine core to its workers: it ends in order, and nothing takes its place
MAX_ADOPTION_BYTES = 1 << 16  # of a message between a worker and the engine core that takes it over

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


class Adopt(msgspec.Struct, frozen=True):
    """Serve another engine core, which has taken the place of a dead one: read calls from `queue`.

    Attributes:
        configuration: fingerprint of the configuration that the engine core was started with.
        sentinel: address of the sentinel of the engine core.
        seed: from which every rank draws the same numbers for requests without a seed of their own.
    """

    engine_id: int
    configuration: str
    queue: QueueHandle
    sentinel: str
    seed: int
    timeout_s: float


class Adopted(msgspec.Struct, frozen=True):
    """Answer of a worker to `Adopt`: the rank, and the queue of the replies; `refusal` where it does not serve."""

    rank: int
    replies: QueueHandle | None = None
    refusal: str = ""


class EngineOrder(msgspec.Struct, frozen=True):
    """Become an engine core, with these variables in the environment, that reports at `handshake_address`."""

    environment: dict[str, str]
    handshake_address: str


_engine_orders = msgspec.msgpack.Decoder(EngineOrder)
_take_overs = msgspec.msgpack.Decoder(TakeOver)
_joins = msgspec.msgpack.Decoder(JoinCommand)
_adopts = msgspec.msgpack.Decoder(Adopt)
_adopteds = msgspec.msgpack.Decoder(Adopted)


def encode(message: TakeOver | JoinCommand | Adopt | Adopted | EngineOrder) -> bytes:
    """Encode a command to a worker, or its answer."""
    return msgspec.msgpack.encode(message)


def decode_take_over(data: bytes) -> TakeOver:
    """Decode a `TakeOver`. Raises `msgspec.DecodeError`."""
    return _take_overs.decode(data)


def decode_join(data: bytes) -> JoinCommand:
    """Decode a `JoinCommand`. Raises `msgspec.DecodeError`."""
    return _joins.decode(data)


def decode_adopt(data: bytes) -> Adopt:
    """Decode an `Adopt`. Raises `msgspec.DecodeError`."""
    return _adopts.decode(data)


def decode_adopted(data: bytes) -> Adopted:
    """Decode an `Adopted`. Raises `msgspec.DecodeError`."""
    return _adopteds.decode(data)


def decode_engine_order(data: bytes) -> EngineOrder:
    """Decode an `EngineOrder`. Raises `msgspec.DecodeError`."""
    return _engine_orders.decode(data)


def adoption_path(runtime_dir: str, pid: int) -> str:
    """Return the path of the socket at which a worker without an engine core waits to be adopted."""
    return f"{runtime_dir}/adopt-{pid}"


def to_handle(queue: QueueHandle) -> Any:
    """Return the host's own handle of a queue."""
    from vllm.distributed.device_communicators.shm_broadcast import Handle

    return Handle(**msgspec.structs.asdict(queue))


def of_handle(handle: Any) -> QueueHandle:
    """Return the typed copy of a host's queue handle."""
    fields = msgspec.structs.fields(QueueHandle)
    return QueueHandle(**{field.name: getattr(handle, field.name) for field in fields})
