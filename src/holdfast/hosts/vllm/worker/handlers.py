"""Calls of the engine core that a worker answers while ranks are replaced: read a new queue, prepare a KV cache."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.utils.network_utils import get_ip

from holdfast.core.faults.redaction import account_of
from holdfast.hosts.vllm.communicators import holders
from holdfast.hosts.vllm.contract.name_touchpoints import ADD_LORA, INITIALIZE_CACHE, PIN_LORA
from holdfast.hosts.vllm.process.queues import retire, wait_until_ready
from holdfast.hosts.vllm.protocol import JoinCommand, WorkerCall, decode_join, to_handle
from holdfast.hosts.vllm.worker.restore import RestoreReply, encode_reply
from holdfast.hosts.vllm.worker.zeroed_memory import FreshZeros

logger = logging.getLogger("holdfast")


def join(proc: Any, data: bytes) -> bytes:
    """Read calls from another queue, and give the queue to every object that references the old one. Never raises."""
    command = decode_join(data)
    return _answer(command.nonce, lambda: _join(proc, command))


def _join(proc: Any, command: JoinCommand) -> None:
    queue = MessageQueue.create_from_handle(to_handle(command.queue), proc.worker.worker.rank)
    wait_until_ready(queue, time.monotonic() + command.timeout_s, "the engine core does not open the new queue")
    old, proc.rpc_broadcast_mq = proc.rpc_broadcast_mq, queue
    holders.replace_everywhere([old], {id(old): queue})
    retire(old)


def open_queues_alone(proc: Any, handle: Any) -> None:
    """Open both queues of a replacement over several nodes, where the host's way needs every rank to take part."""
    parallel = proc.worker.worker.vllm_config.parallel_config
    is_with_engine_core = proc.rank < parallel.local_world_size
    proc.rpc_broadcast_mq = MessageQueue.create_from_handle(handle, proc.rank)
    proc.worker_response_mq = MessageQueue(1, 1 if is_with_engine_core else 0, connect_ip=get_ip())
    proc.peer_response_handles = []


def prepare(
    proc: Any,
    nonce: str,
    ranks: tuple[int, ...],
    calls: Sequence[WorkerCall],
    measured: Sequence[tuple[WorkerCall, Sequence[Any]]] = (),
) -> bytes:
    """Make a replacement ready by the calls of the host's start; do nothing on further ranks. Never raises.

    Args:
        ranks: the ranks that were replaced.
        calls: as the first workers of the engine core were given them; one makes the KV cache.
        measured: calls that are not repeated, with the answers of all ranks.
    """
    link = _link_of(proc)

    def act() -> None:
        if link is not None:
            for call, answers in measured:
                link.answers.note(*call, answers[proc.rank])
        for method, args, kwargs in calls:
            with FreshZeros() if method == INITIALIZE_CACHE else contextlib.nullcontext():
                asked = copy.deepcopy((args, kwargs))
                answer = getattr(proc.worker, method)(*args, **kwargs)
            if link is not None:
                link.answers.note(method, *asked, answer)

    return _answer(nonce, act if proc.rank in ranks else lambda: None)


def outlive(proc: Any, nonce: str, configuration: str) -> bytes:
    """Outlive the engine core from now on, which has the configuration with this fingerprint. Never raises."""

    def act() -> None:
        if (link := _link_of(proc)) is not None:
            link.outlive(configuration)

    return _answer(nonce, act)


def repeat(proc: Any, nonce: str, ranks: tuple[int, ...], calls: Sequence[WorkerCall]) -> bytes:
    """Repeat calls that set state at run time, in their order, on the replaced ranks. Never raises.

    The calls came from the host's own `collective_rpc` and its kin, over the same queue, and were carried out then.
    """

    def act() -> None:
        for method, args, kwargs in calls:
            try:
                getattr(proc.worker, method)(*args, **kwargs)
            except Exception:
                if method not in (ADD_LORA, PIN_LORA):
                    raise
                logger.exception("rank %d cannot load an adapter; requests for it will end with that error", proc.rank)

    return _answer(nonce, act if proc.rank in ranks else lambda: None)


def _link_of(proc: Any) -> Any:
    """Return the tie of a worker to its engine core; None where the worker ends with the engine core."""
    return getattr(getattr(proc, "holdfast", None), "link", None)


def _answer(nonce: str, act: Callable[[], object]) -> bytes:
    """Call `act` and reply how the call went. Never raises: the host would take an exception for a step's."""
    try:
        act()
    except Exception as error:
        logger.exception("a command of the engine core failed")
        return encode_reply(RestoreReply(nonce=nonce, error=str(account_of(error))))
    return encode_reply(RestoreReply(nonce=nonce))
