"""What an engine core tells its workers when some of them are replaced, and how a worker follows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from holdfast.core.faults.faults import describe_error
from holdfast.hosts.vllm.protocol.calls import JoinCommand, decode_join, to_handle
from holdfast.hosts.vllm.protocol.restore import RestoreReply, encode_reply

logger = logging.getLogger("holdfast")


def answered(nonce: str, act: Callable[[], object]) -> bytes:
    """Do it, and say how that went. Never raises: a failure of the host's kind would be taken for a step's."""
    try:
        act()
    except Exception as error:
        logger.exception("an order of the engine core failed")
        return encode_reply(RestoreReply(nonce=nonce, error=": ".join(describe_error(error))))
    return encode_reply(RestoreReply(nonce=nonce))


def join(proc: Any, data: bytes) -> bytes:
    """Read from another queue. Whoever holds the old one, to wake this worker at the end, gets the new one."""
    order = decode_join(data)
    return answered(order.nonce, lambda: _join(proc, order))


def _join(proc: Any, order: JoinCommand) -> None:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    from holdfast.hosts.vllm.communicators import holders
    from holdfast.hosts.vllm.process.queues import retire, wait_until_ready

    queue = MessageQueue.create_from_handle(to_handle(order.queue), proc.worker.worker.rank)
    wait_until_ready(queue, time.monotonic() + order.timeout_s, "the new queue is never ready")
    old, proc.rpc_broadcast_mq = proc.rpc_broadcast_mq, queue
    holders.replace_everywhere([old], {id(old): queue})
    retire(old)


def prepare(
    proc: Any, nonce: str, newcomers: tuple[int, ...], layout: str | None, kv_cache_configs: list[Any]
) -> bytes:
    """A newcomer gets its KV cache and is warmed up; for the others there is nothing to do."""

    def act() -> None:
        from holdfast.hosts.vllm.worker.zeroed_memory import FreshZeros

        wrapper = proc.worker
        if layout is not None:
            wrapper.worker.set_kv_cache_layout(layout)
        with FreshZeros():
            wrapper.initialize_from_config(kv_cache_configs)
        wrapper.worker.compile_or_warm_up_model()

    return answered(nonce, act if proc.rank in newcomers else lambda: None)
