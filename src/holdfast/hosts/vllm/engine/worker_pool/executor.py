"""The executor of a protected engine core: the host's own, with workers that can be replaced one by one.

Calls skip stale replies of failed steps. The queue over which an engine core calls its workers cannot outlive a reader:
a dead reader marks nothing as read, and a new reader begins at the front. So a replacement opens a new queue, and the
surviving workers are told over the old queue to read from the new one, once every replacement has its weights.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from vllm.utils.system_utils import get_mp_context
from vllm.v1.executor.multiproc_executor import MultiprocExecutor, WorkerProc

from holdfast.core.errors import PeerSilent, RecoveryFailed
from holdfast.core.faults.redaction import PublicText
from holdfast.core.protocol.messages import Standbys
from holdfast.hosts.vllm.engine.pacing import replace_method
from holdfast.hosts.vllm.engine.worker_pool.adoption import say_end, take_over_workers
from holdfast.hosts.vllm.engine.worker_pool.exit_watch import WorkerExitWatch
from holdfast.hosts.vllm.engine.worker_pool.launchers import Launchers, LocalLauncher
from holdfast.hosts.vllm.engine.worker_pool.remote_ranks import node_watch
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import (
    Replacement,
    ReplacementProcesses,
    ReplacementResult,
)
from holdfast.hosts.vllm.engine.worker_pool.spawning import (
    KILL_TIMEOUT_S,
    ReplacementProcess,
    WorkerSeed,
    seed_of,
    start_replacement,
    start_standby,
    start_standby_parent,
)
from holdfast.hosts.vllm.engine.worker_pool.standby_parent import StandbyParent
from holdfast.hosts.vllm.engine.worker_pool.standby_pool import StandbyPool
from holdfast.hosts.vllm.engine.worker_pool.start_calls import StartCalls
from holdfast.hosts.vllm.process import priority
from holdfast.hosts.vllm.process.bootstrap import bootstrapped
from holdfast.hosts.vllm.process.forking import first_fork_server
from holdfast.hosts.vllm.process.queues import bounded, calls_queue, interruptible, retire, wait_until_ready
from holdfast.hosts.vllm.process.settings import adopted_workers, inherited_settings
from holdfast.hosts.vllm.process.shared_memory import remove_dead_segments
from holdfast.hosts.vllm.protocol import JOIN, OUTLIVE, PREPARE, REPEAT, JoinCommand, WorkerCall, encode, of_handle
from holdfast.hosts.vllm.worker.restore import RESTORE, RestoreCommand, RestoreReply, decode_reply, encode_command


class WorkerPoolExecutor(MultiprocExecutor):
    """`MultiprocExecutor` with drainable reply queues and replaceable workers.

    Busy loop's thread, except where a method says otherwise.

    Attributes:
        on_rank_lost: called with a lost rank, its process id, how the process ended and the exit code. Any thread.
        on_standbys: called with the state of the standby pool after each change. Any thread.
        lost_ranks: the ranks whose process ended and was not replaced since. Any thread.
    """

    on_rank_lost: Callable[[int, int, str, int | None], None] = staticmethod(lambda rank, pid, how, exit_code: None)
    on_standbys: Callable[[Standbys], None] = staticmethod(lambda state: None)
    seed: WorkerSeed
    start_calls: StartCalls
    standbys: StandbyPool
    launchers: Launchers
    standby_parent: StandbyParent
    lost_ranks: frozenset[int] = frozenset()
    has_adopted: bool = False  # whether the workers are those of a dead engine core
    _configuration: str
    _watch: WorkerExitWatch | None = None
    _may_be_outlived = False
    _stop_noting: Callable[[], None]

    # ---- the host's methods

    def _init_executor(self) -> None:
        self.seed = seed_of(self.vllm_config)
        config = inherited_settings()
        size, preload = (config.standby_workers, config.standby_preload) if config else (0, False)
        priority.share_hold()
        self.standby_parent = StandbyParent(
            lambda requests: start_standby_parent(self.seed, requests, first_fork_server())
        )
        start = functools.partial(self._start_standby, preload)
        self.standbys = StandbyPool(size, start, self._report_standbys, self.standby_parent)
        self._get_parallel_sizes()
        here = LocalLauncher(lambda: self.workers, self._start_here)
        self.launchers = Launchers(here, self.local_world_size, node_watch())
        self._configuration = self.vllm_config.compute_hash()
        self.has_adopted = bool(config and (pids := adopted_workers()))
        if config and self.has_adopted:
            take_over_workers(self, pids, config, self._configuration)
        else:
            with bootstrapped(get_mp_context(), background=False):
                super()._init_executor()
        for queue in self.response_mqs:
            interruptible(queue)
        self._call_over(self.rpc_broadcast_mq)
        self.note_start_calls()

    def let_workers_outlive(self, timeout_s: float) -> None:
        """Tell the workers that they are ready, and may outlive this engine core. Raises as `repeat_calls`."""
        nonce = uuid.uuid4().hex
        self._enqueue((OUTLIVE, (nonce, self._configuration), {}, None), timeout_s)
        self._await_replies(nonce, range(self.world_size), time.monotonic() + timeout_s)
        self._may_be_outlived = True

    def note_start_calls(self) -> None:
        """Note the calls that make the workers ready, until `start_ended`."""
        self.start_calls = StartCalls()
        self._stop_noting = replace_method(self, "collective_rpc", self.start_calls.noting(super().collective_rpc))

    def start_ended(self) -> None:
        """End the notes: the workers are ready. Calls that set state later are kept by `RuntimeState`."""
        self._stop_noting()

    def start_worker_monitor(self, inline: bool = False) -> None:
        """Watch the workers; unlike the host's monitor, leave the survivors running when a worker exits."""
        self._stop_watching()
        self._watch = WorkerExitWatch({w.rank: w.proc for w in self.workers}, self.lose_rank)
        self._watch.start()

    def shutdown(self) -> None:
        self._stop_watching()
        self.standbys.close()
        if self._may_be_outlived and not getattr(self, "shutting_down", False):
            say_end(getattr(self, "workers", None) or ())  # other workers have the host's watch, which expects no word
        super().shutdown()

    # ---- lost workers

    def dead_ranks(self) -> set[int]:
        return {w.rank for w in self.workers if not w.proc.is_alive()} | self.launchers.elsewhere(self.lost_ranks)

    def kill_rank(self, rank: int) -> None:
        """Kill the process of a rank. Any thread."""
        self.launchers.of(rank).worker(rank).proc.kill()

    def lose_rank(self, rank: int, pid: int, how: str, exit_code: int | None) -> None:
        """Take a rank for lost; report the rank, and end waits for its replies. Any thread."""
        if getattr(self, "shutting_down", False):
            return
        self.lost_ranks |= {rank}
        self.is_failed = True
        priority.hold()  # the recovery that begins comes before standbys
        self.on_rank_lost(rank, pid, how, exit_code)
        if rank < len(self.response_mqs):
            self.response_mqs[rank].shutdown()  # ends a wait for the rank's reply

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    # ---- standbys

    def _start_standby(self, preload: bool, slot: int) -> ReplacementProcess:
        rank = slot % self.local_world_size
        is_driver, server = self._is_driver_worker(rank), self.standby_parent.server
        return start_standby(
            self.seed, rank, is_driver=is_driver, preload=preload and not self.standbys.is_plain(slot), server=server
        )

    def _report_standbys(self, state: Standbys) -> None:
        self.on_standbys(state)  # which is set after the pool was made

    # ---- replacing workers

    def await_nodes(self, ranks: set[int], timeout_s: float) -> dict[int, int]:
        """Wait for the nodes of ranks; return the processes that are there again, by rank. Raises `RecoveryFailed`."""
        watch, far = node_watch(), self.launchers.elsewhere(ranks)
        return watch.await_nodes(far, time.monotonic() + timeout_s) if watch is not None and far else {}

    def take_back(self, ranks: set[int]) -> None:
        """Count ranks among the living again: they were lost with their node, and have answered since."""
        watch = node_watch()
        assert watch is not None
        for rank in ranks:
            watch.take_back(rank)
            self.response_mqs[rank].shutting_down = False
        self.lost_ranks -= ranks
        self.is_failed = bool(self.lost_ranks)

    def replace_workers(self, ranks: Sequence[int], start_timeout_s: float, timeout_s: float) -> ReplacementResult:
        """Give each of the ranks a new process with weights and KV cache.

        May be called again after an error, with the same ranks or more.

        Args:
            start_timeout_s: bound of the start of the processes, and of the preparation of their KV caches.
            timeout_s: bound of the change to the new queue.

        Raises:
            RecoveryFailed: a process did not start, or a worker failed.
            PeerSilent: a worker did not answer in time.
        """
        if what := self.start_calls.unrepeatable:
            raise RecoveryFailed(PublicText(f"no worker can be replaced: {what} was carried out in the first ones"))
        began = time.monotonic()
        self._end_processes(ranks)
        queue = calls_queue(self)
        handle = queue.export_handle()
        replacements = ReplacementProcesses(
            ranks,
            self.standbys,
            lambda rank: self.launchers.of(rank).start(rank, handle),
            lambda standby, rank: standby.assign(rank, is_driver=self._is_driver_worker(rank), queue=handle),
            self.launchers.is_here,
        )
        try:
            replacements.start()
            workers = replacements.await_ready(began + start_timeout_s)
            self._change_queue(queue, ranks, workers, time.monotonic() + timeout_s)
        except BaseException:
            replacements.kill()
            raise
        self._prepare(ranks, time.monotonic() + start_timeout_s)
        if (config := inherited_settings()) is not None:
            remove_dead_segments(config.runtime_dir)
        return ReplacementResult(replacements.pids, replacements.standbys_used, time.monotonic() - began)

    def _start_here(self, rank: int, queue: Any) -> Replacement:
        is_driver, server = self._is_driver_worker(rank), self.standby_parent.server
        return start_replacement(self.seed, rank, is_driver=is_driver, queue=queue, server=server)

    def _end_processes(self, ranks: Sequence[int]) -> None:
        """Kill the processes of the ranks and wait until they end. Raises `RecoveryFailed`."""
        self._stop_watching()
        workers = [self.launchers.of(rank).worker(rank) for rank in ranks]
        for worker in workers:
            worker.proc.kill()
            if worker.death_writer is not None:
                worker.death_writer.close()
                worker.death_writer = None
        for rank, worker in zip(ranks, workers, strict=True):
            worker.proc.join(KILL_TIMEOUT_S)
            if worker.proc.is_alive():
                raise RecoveryFailed(f"the old process of rank {rank} does not end after SIGKILL")

    def _change_queue(self, queue: Any, ranks: Sequence[int], workers: Sequence[Any], deadline: float) -> None:
        """Have all ranks read from `queue`, retire the old queues and watch the new processes.

        Args:
            ranks: the replaced ranks.
            workers: the host's handles of the new workers.
        """
        nonce = uuid.uuid4().hex
        survivors = [rank for rank in range(self.world_size) if rank not in ranks]
        if survivors:
            left_s = deadline - time.monotonic()
            command = JoinCommand(nonce=nonce, queue=of_handle(queue.export_handle()), timeout_s=left_s)
            self._enqueue((JOIN, (encode(command),), {}, None), deadline - time.monotonic())
        wait_until_ready(queue, deadline, "a rank does not open the new queue")
        for rank, worker in zip(ranks, workers, strict=True):
            old = self.response_mqs[rank]
            self.launchers.of(rank).install(rank, worker)
            self.response_mqs[rank] = interruptible(worker.worker_response_mq)
            wait_until_ready(worker.worker_response_mq, deadline, f"rank {rank} does not open its reply queue")
            retire(old)
        self._await_replies(nonce, survivors, deadline)
        old = self.rpc_broadcast_mq
        self._call_over(queue)
        retire(old)
        self.futures_queue.clear()
        self.is_failed, self.lost_ranks = False, frozenset()
        self.start_worker_monitor()

    def _prepare(self, ranks: Sequence[int], deadline: float) -> None:
        """Make the replaced ranks ready by the calls of the host's own start, without measuring memory again."""
        nonce = uuid.uuid4().hex
        arguments = (nonce, tuple(ranks), self.start_calls.calls(), self.start_calls.measured())
        self._enqueue((PREPARE, arguments, {}, None), deadline - time.monotonic())
        self._await_replies(nonce, range(self.world_size), deadline)

    def repeat_calls(self, ranks: Sequence[int], calls: Sequence[WorkerCall], timeout_s: float) -> None:
        """Have the replaced ranks repeat the calls that set state at run time.

        Raises:
            RecoveryFailed: a call failed.
            PeerSilent: a worker did not answer within `timeout_s`.
        """
        nonce = uuid.uuid4().hex
        self._enqueue((REPEAT, (nonce, tuple(ranks), tuple(calls)), {}, None), timeout_s)
        self._await_replies(nonce, range(self.world_size), time.monotonic() + timeout_s)

    # ---- restoring workers

    def restore_workers(
        self, command: RestoreCommand, timeout_s: float, meanwhile: Callable[[], None]
    ) -> tuple[list[RestoreReply], int]:
        """Have every rank carry out `command` after all calls queued before; run `meanwhile` here.

        Returns:
            The replies of the ranks, and the number of replies of failed steps that were dropped.

        Raises:
            PeerSilent: a rank did not answer within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        self._enqueue((RESTORE, (encode_command(command),), {}, None), timeout_s)
        replies, stale = [], 0
        try:
            meanwhile()
        finally:  # replies that are not awaited would be in the way of the next call
            for rank in range(len(self.response_mqs)):
                reply, dropped = self._drain(rank, command.nonce, deadline)
                replies.append(reply)
                stale += dropped
        self.futures_queue.clear()
        return replies, stale

    # ---- calls and replies

    def _call_over(self, queue: Any) -> None:
        """Call the workers over `queue` from now on."""
        self.rpc_broadcast_mq = bounded(queue, lambda: self.is_failed)

    def _enqueue(self, call: tuple[Any, ...], timeout_s: float) -> None:
        try:
            self.rpc_broadcast_mq.enqueue(call, timeout=timeout_s)
        except TimeoutError:
            raise PeerSilent("a rank reads no calls any more and is declared hung") from None

    def _await_replies(self, nonce: str, ranks: Sequence[int], deadline: float) -> None:
        """Wait for the replies of the ranks. Raises `RecoveryFailed` where a rank reports an error."""
        for rank in ranks:
            reply, _ = self._drain(rank, nonce, deadline)
            if reply.error:
                raise RecoveryFailed(f"rank {rank}: {reply.error}")

    def _drain(self, rank: int, nonce: str, deadline: float) -> tuple[RestoreReply, int]:
        """Return the reply of a rank to the call with `nonce`, and the number of replies dropped before.

        Raises:
            PeerSilent: the rank did not answer before `deadline`.
        """
        dropped = 0
        while True:
            left_s = deadline - time.monotonic()
            try:
                status, result = self.response_mqs[rank].dequeue(timeout=max(0.0, left_s))
            except TimeoutError:
                silence = f"rank {rank} did not answer in time and is declared hung"
                raise PeerSilent(silence, rank=rank) from None
            if status == WorkerProc.ResponseStatus.SUCCESS and isinstance(result, bytes):
                reply = decode_reply(result)
                if reply is not None and reply.nonce == nonce:
                    return reply, dropped
            dropped += 1
