"""Starts the process of a newcomer or of a standby, in an engine core that runs threads: always by spawning.

Knows how a worker of the host is started; decides nothing.
"""

from __future__ import annotations

import copy
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

from vllm.v1.executor.multiproc_executor import OMPProcessManager, UnreadyWorkerProcHandle, WorkerProc

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.process.bootstrap import Bootstrap
from holdfast.hosts.vllm.process.exits import describe_exit
from holdfast.hosts.vllm.process.shared_memory import recorded
from holdfast.hosts.vllm.protocol.calls import TakeOver, encode, of_handle
from holdfast.hosts.vllm.worker.replacement_main import replacement_main, standby_main

_SPAWN = multiprocessing.get_context("spawn")
# Nobody is met there: see `alone`.
_NOWHERE = "tcp://127.0.0.1:1"


@dataclass(frozen=True)
class WorkerSeed:
    """What every worker of an engine core is started with."""

    vllm_config: Any

    def kwargs(self, rank: int, *, is_driver: bool, queue: Any) -> dict[str, Any]:
        return {
            "vllm_config": self.vllm_config,
            "local_rank": rank,
            "rank": rank,
            "distributed_init_method": _NOWHERE,
            "input_shm_handle": queue,
            "shared_worker_lock": recorded(_SPAWN.Lock()),
            "is_driver_worker": is_driver,
            "inherited_fds": [],
        }


def seed_of(vllm_config: Any) -> WorkerSeed:
    """The configuration as it is now, before an engine core writes into it."""
    config = copy.deepcopy(vllm_config)
    config.parallel_config._coord_store_port = 0
    return WorkerSeed(config)


@dataclass
class Newcomer:
    """A process on its way to become a rank; for a standby `orders` is where it is told which."""

    process: Any
    ready: Connection
    death_writer: Connection
    lock: Any  # of the host; it must live until the process has opened it
    orders: Connection | None = None
    rank: int | None = None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def was_standby(self) -> bool:
        return self.orders is not None

    def take_over(self, rank: int, *, is_driver: bool, queue: Any) -> None:
        """Tell a standby which rank it is. Raises `RecoveryFailed` where it is gone."""
        assert self.orders is not None
        self.rank = rank
        order = TakeOver(rank=rank, is_driver=is_driver, queue=of_handle(queue))
        try:
            self.orders.send_bytes(encode(order))
        except OSError as error:
            raise RecoveryFailed(f"the standby for rank {rank} is gone: {error}") from error

    def await_ready(self, deadline: float) -> Any:
        """The host's handle of a worker with its weights read. Raises `RecoveryFailed`."""
        left_s = max(0.0, deadline - time.monotonic())
        found = multiprocessing.connection.wait([self.ready, self.process.sentinel], left_s)
        if self.ready not in found:
            ended = f"it ended: {describe_exit(self.process.exitcode)}" if found else "it took too long"
            raise RecoveryFailed(f"the new process of rank {self.rank} did not start: {ended}")
        handle = UnreadyWorkerProcHandle(self.process, 0, self.ready, self.death_writer)
        try:
            [ready] = WorkerProc.wait_for_ready([handle])
        except Exception as error:  # the host raises a plain one
            raise RecoveryFailed(f"the new process of rank {self.rank} did not start; see its log above") from error
        ready.rank = self.rank
        return ready

    def kill(self) -> None:
        self.process.kill()
        for end in (self.ready, self.death_writer, self.orders):
            if end is not None:
                end.close()
        self.process.join(KILL_TIMEOUT_S)


KILL_TIMEOUT_S = 5.0


def start_replacement(seed: WorkerSeed, rank: int, *, is_driver: bool, queue: Any) -> Newcomer:
    kwargs = seed.kwargs(rank, is_driver=is_driver, queue=queue)
    newcomer = _start(seed, rank, Bootstrap(replacement_main, background=False), kwargs)
    newcomer.rank = rank
    return newcomer


def start_standby(seed: WorkerSeed, rank: int, *, is_driver: bool, preload: bool) -> Newcomer:
    """A process that waits until it is needed; with `preload` as `rank`, with its weights read."""
    ours, theirs = _SPAWN.Pipe()
    kwargs = seed.kwargs(rank, is_driver=is_driver, queue=None)
    main = Bootstrap(standby_main, background=True)
    newcomer = _start(seed, rank, main, {**kwargs, "orders": theirs, "preload": preload})
    theirs.close()
    newcomer.orders, newcomer.rank = ours, rank if preload else None
    return newcomer


def _start(seed: WorkerSeed, rank: int, main: Bootstrap, kwargs: dict[str, Any]) -> Newcomer:
    ready_reader, ready_writer = _SPAWN.Pipe(duplex=False)
    death_reader, death_writer = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(
        target=cast("Callable[..., None]", main),  # a call once it is there
        kwargs={**kwargs, "ready_pipe": ready_writer, "death_pipe": death_reader},
        name=f"VllmWorker-{rank}",
        daemon=True,
    )
    with OMPProcessManager(seed.vllm_config).configure_omp_envs(rank=rank, local_rank=rank):
        process.start()
    ready_writer.close()
    death_reader.close()
    return Newcomer(process, ready_reader, death_writer, kwargs["shared_worker_lock"])
