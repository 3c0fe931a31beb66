"""The executor under Holdfast: the host's own, plus a call that gets past stale replies.

Engine cores unpickle this class before they run anything, so importing this module is what attaches
the engine core's hooks: it is the earliest moment there is. A worker that is forked loads no plugins of its
own: it finds its hooks attached too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc

from holdfast.core.errors import PeerSilent
from holdfast.hosts.vllm.engine_core import attach_engine_hooks
from holdfast.hosts.vllm.restore import RESTORE, RestoreOrder, RestoreReply, decode_reply, encode_order
from holdfast.hosts.vllm.worker import attach_worker_hooks

attach_engine_hooks()
attach_worker_hooks()


class HoldfastExecutor(MultiprocExecutor):
    """`MultiprocExecutor` whose reply queues can be drained up to a known answer."""

    def restore_workers(
        self, order: RestoreOrder, timeout_s: float, meanwhile: Callable[[], None]
    ) -> tuple[list[RestoreReply], int]:
        """Let every rank carry out `order` after everything queued before it; `meanwhile` runs here.

        Returns:
            The ranks' replies, and how many replies of failed steps were dropped on the way.

        Raises:
            PeerSilent: a rank did not answer within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self._enqueue((RESTORE, (encode_order(order),), {}, None), timeout_s)
        replies, stale = [], 0
        try:
            meanwhile()
        finally:  # an order that nobody waits for would be in the way of the next one
            for rank in range(len(self.response_mqs)):
                reply, dropped = self._drain_to_reply(rank, order.nonce, deadline)
                replies.append(reply)
                stale += dropped
        self.futures_queue.clear()
        return replies, stale

    def _enqueue(self, call: tuple[Any, ...], timeout_s: float) -> None:
        try:
            self.rpc_broadcast_mq.enqueue(call, timeout=timeout_s)
        except TimeoutError:
            raise PeerSilent("a rank reads no calls any more; it is taken for hung") from None

    def _drain_to_reply(self, rank: int, nonce: str, deadline: float) -> tuple[RestoreReply, int]:
        dropped = 0
        while True:
            left_s = deadline - time.monotonic()
            try:
                status, result = self.response_mqs[rank].dequeue(timeout=max(0.0, left_s))
            except TimeoutError:
                raise PeerSilent(f"rank {rank} did not answer in time; it is taken for hung") from None
            if status == WorkerProc.ResponseStatus.SUCCESS and isinstance(result, bytes):
                reply = decode_reply(result)
                if reply is not None and reply.nonce == nonce:
                    return reply, dropped
            dropped += 1
