"""The executor under Holdfast: the host's own, with calls that get past stale replies and workers to be replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc

from holdfast.core.errors import PeerSilent, RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool.bounded_queue import bounded
from holdfast.hosts.vllm.engine.worker_pool.exit_watch import WorkerExitWatch
from holdfast.hosts.vllm.engine.worker_pool.replacement import Replaced, replace_ranks
from holdfast.hosts.vllm.engine.worker_pool.spawning import Newcomer, WorkerSeed, seed_of, start_standby
from holdfast.hosts.vllm.engine.worker_pool.standby_pool import PoolState, StandbyPool
from holdfast.hosts.vllm.process.settings import inherited_settings
from holdfast.hosts.vllm.process.shared_memory import record_semaphores
from holdfast.hosts.vllm.protocol.restore import RESTORE, RestoreCommand, RestoreReply, decode_reply, encode_order


class WorkerPoolExecutor(MultiprocExecutor):
    """`MultiprocExecutor` whose reply queues can be drained and whose workers can be replaced one by one.

    `on_rank_lost` is told a rank, how its process went and its exit code; `on_standbys` what became of the pool.
    Any thread.
    """

    on_rank_lost: Callable[[int, str, int | None], None] = staticmethod(lambda rank, how, exit_code: None)
    on_standbys: Callable[[PoolState], None] = staticmethod(lambda state: None)
    kv_cache_configs: Sequence[Any] = ()
    kv_cache_layout: str | None = None
    seed: WorkerSeed
    standbys: StandbyPool
    _watch: WorkerExitWatch | None = None

    def _init_executor(self) -> None:
        self.seed = seed_of(self.vllm_config)
        config = inherited_settings()
        size, preload = (config.standby_workers, config.standby_preload) if config else (0, False)
        self.standbys = StandbyPool(size, lambda slot: self._new_standby(slot, preload), self._tell_standbys)
        with record_semaphores():
            super()._init_executor()
        self.attach_queue(self.rpc_broadcast_mq)

    def attach_queue(self, queue: Any) -> None:
        """Call the workers over `queue` from now on."""
        self.rpc_broadcast_mq = bounded(queue, lambda: self.is_failed)

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        self.kv_cache_configs = kv_cache_configs
        super().initialize_from_config(kv_cache_configs)

    def set_kv_cache_layout(self, layout_name: str) -> None:
        self.kv_cache_layout = layout_name
        super().set_kv_cache_layout(layout_name)

    def shutdown(self) -> None:
        self.stop_watching()
        self.standbys.close()
        super().shutdown()

    # ---- deaths

    def start_worker_monitor(self, inline: bool = False) -> None:
        """One that is gone does not end the others."""
        self.stop_watching()
        self._watch = WorkerExitWatch({w.rank: w.proc for w in self.workers}, self._lost)
        self._watch.start()

    def stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def kill_rank(self, rank: int) -> None:
        self.workers[rank].proc.kill()

    def _lost(self, rank: int, how: str, exit_code: int | None) -> None:
        if getattr(self, "shutting_down", False):
            return
        self.is_failed = True
        self.on_rank_lost(rank, how, exit_code)
        if rank < len(self.response_mqs):
            self.response_mqs[rank].shutdown()  # wakes whoever waits for its reply

    def dead_ranks(self) -> set[int]:
        return {w.rank for w in self.workers if not w.proc.is_alive()}

    # ---- standbys

    def _new_standby(self, slot: int, preload: bool) -> Newcomer:
        rank = slot % self.world_size
        return start_standby(self.seed, rank, is_driver=self._is_driver_worker(rank), preload=preload)

    def _tell_standbys(self, state: PoolState) -> None:
        self.on_standbys(state)

    # ---- recovering

    def replace_workers(self, ranks: Sequence[int], start_timeout_s: float, timeout_s: float) -> Replaced:
        """Give ranks a new process each. Raises `RecoveryFailed` or `PeerSilent`; it may be called again."""
        return replace_ranks(self, ranks, start_timeout_s, timeout_s)

    def restore_workers(
        self, order: RestoreCommand, timeout_s: float, meanwhile: Callable[[], None]
    ) -> tuple[list[RestoreReply], int]:
        """Let every rank carry out `order` after everything queued before it; `meanwhile` runs here.

        Returns:
            The ranks' replies, and how many replies of failed steps were dropped on the way.

        Raises:
            PeerSilent: a rank did not answer within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self.enqueue((RESTORE, (encode_order(order),), {}, None), timeout_s)
        replies, stale = [], 0
        try:
            meanwhile()
        finally:  # an order that nobody waits for would be in the way of the next one
            for rank in range(len(self.response_mqs)):
                reply, dropped = self.drain(rank, order.nonce, deadline)
                replies.append(reply)
                stale += dropped
        self.futures_queue.clear()
        return replies, stale

    def call_each(self, call: tuple[Any, ...], nonce: str, ranks: Sequence[int], deadline: float) -> None:
        """Call every rank and wait for these. Raises `RecoveryFailed` where one says that it failed."""
        self.enqueue(call, deadline - time.monotonic())
        self.await_each(nonce, ranks, deadline)

    def await_each(self, nonce: str, ranks: Sequence[int], deadline: float) -> None:
        for rank in ranks:
            reply, _ = self.drain(rank, nonce, deadline)
            if reply.error:
                raise RecoveryFailed(f"rank {rank}: {reply.error}")

    def enqueue(self, call: tuple[Any, ...], timeout_s: float) -> None:
        try:
            self.rpc_broadcast_mq.enqueue(call, timeout=timeout_s)
        except TimeoutError:
            raise PeerSilent("a rank reads no calls any more; it is taken for hung") from None

    def drain(self, rank: int, nonce: str, deadline: float) -> tuple[RestoreReply, int]:
        """A rank's reply to the call with this nonce, and how many others were dropped. Raises `PeerSilent`."""
        dropped = 0
        while True:
            left_s = deadline - time.monotonic()
            try:
                status, result = self.response_mqs[rank].dequeue(timeout=max(0.0, left_s))
            except TimeoutError:
                silence = f"rank {rank} did not answer in time; it is taken for hung"
                raise PeerSilent(silence, rank=rank) from None
            if status == WorkerProc.ResponseStatus.SUCCESS and isinstance(result, bytes):
                reply = decode_reply(result)
                if reply is not None and reply.nonce == nonce:
                    return reply, dropped
            dropped += 1
