"""Start the process of a replacement or of a standby.

Forked from the parent of standbys where there is one, else spawned: an engine core runs threads and cannot be forked.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import multiprocessing.connection
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from vllm.v1.executor.multiproc_executor import OMPProcessManager, UnreadyWorkerProcHandle, WorkerProc

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import PublicText
from holdfast.hosts.vllm.process.bootstrap import Bootstrap
from holdfast.hosts.vllm.process.forking import CannotFork, ForkedProcess, ForkServer
from holdfast.hosts.vllm.process.lifecycle import describe_exit
from holdfast.hosts.vllm.protocol import TakeOver, encode, of_handle
from holdfast.hosts.vllm.worker.replacement_main import replacement_main, standby_main, standby_parent_main

logger = logging.getLogger("holdfast")

KILL_TIMEOUT_S = 5.0

_SPAWN = multiprocessing.get_context("spawn")
# An address that is never connected to: process groups are placeholders, see `communicators.placeholder_groups`.
_NOWHERE = "tcp://127.0.0.1:1"


@dataclass(frozen=True)
class WorkerSeed:
    """The arguments that every worker of an engine core is started with."""

    vllm_config: Any

    def local_rank(self, rank: int) -> int:
        """Return the number of a rank on its node."""
        return rank % int(self.vllm_config.parallel_config.local_world_size)

    def kwargs(self, rank: int, *, is_driver: bool, queue: Any) -> dict[str, Any]:
        """Return the arguments of the host's `WorkerProc.worker_main` for a rank."""
        return {
            "vllm_config": self.vllm_config,
            "local_rank": self.local_rank(rank),
            "rank": rank,
            "distributed_init_method": _NOWHERE,
            "input_shm_handle": queue,
            "shared_worker_lock": _SPAWN.Lock(),
            "is_driver_worker": is_driver,
            "inherited_fds": [],
        }


def seed_of(vllm_config: Any) -> WorkerSeed:
    """Copy the present configuration, before an engine core writes into the original."""
    config = copy.deepcopy(vllm_config)
    config.parallel_config._coord_store_port = 0
    return WorkerSeed(config)


@dataclass
class ReplacementProcess:
    """A process that becomes the worker of a rank. A standby has `orders`, the pipe over which a rank is assigned."""

    process: Any
    ready: Connection
    death_writer: Connection
    lock: Any  # of the host; must live until the process has opened it
    orders: Connection | None = None
    rank: int | None = None
    started_at: float = field(default_factory=time.monotonic)

    @property
    def was_standby(self) -> bool:
        return self.orders is not None

    @property
    def pid(self) -> int | None:
        pid: int | None = self.process.pid
        return pid

    def assign(self, rank: int, *, is_driver: bool, queue: Any) -> None:
        """Assign a rank to a standby. Raises `RecoveryFailed` when the standby has ended.

        Args:
            queue: the host's handle of the queue to read calls from.
        """
        assert self.orders is not None
        self.rank = rank
        try:
            self.orders.send_bytes(encode(TakeOver(rank=rank, is_driver=is_driver, queue=of_handle(queue))))
        except OSError as error:
            raise RecoveryFailed(f"the standby for rank {rank} has ended: {error}") from error

    def await_ready(self, deadline: float) -> Any:
        """Return the host's handle of the worker once the weights are loaded. Raises `RecoveryFailed`."""
        left_s = max(0.0, deadline - time.monotonic())
        found = multiprocessing.connection.wait([self.ready, self.process.sentinel], left_s)
        if self.ready not in found:
            why = f"the process ended: {describe_exit(self.process.exitcode)}" if found else "timed out"
            raise RecoveryFailed(PublicText(f"the new process of rank {self.rank} did not start: {why}"))
        handle = UnreadyWorkerProcHandle(self.process, 0, self.ready, self.death_writer)
        try:
            [ready] = WorkerProc.wait_for_ready([handle])
        except Exception as error:  # the host raises a plain exception
            raise RecoveryFailed(f"the new process of rank {self.rank} did not start; see its log above") from error
        ready.rank = self.rank
        return ready

    def kill(self) -> None:
        """Kill the process and wait for the end, within `KILL_TIMEOUT_S`."""
        self.process.kill()
        for end in (self.ready, self.death_writer, self.orders):
            if end is not None:
                end.close()
        self.process.join(KILL_TIMEOUT_S)


def start_replacement(
    seed: WorkerSeed, rank: int, *, is_driver: bool, queue: Any, server: ForkServer | None = None
) -> ReplacementProcess:
    """Start a process for a rank.

    Args:
        queue: the host's handle of the queue to read calls from.
        server: forks the process; without one, and where that fails, the process is spawned.
    """
    kwargs = seed.kwargs(rank, is_driver=is_driver, queue=queue)
    replacement = _start(seed, rank, Bootstrap(replacement_main, background=False), kwargs, server)
    replacement.rank = rank
    return replacement


def start_standby(
    seed: WorkerSeed, rank: int, *, is_driver: bool, preload: bool, server: ForkServer | None = None
) -> ReplacementProcess:
    """Start a process that waits until a rank is assigned; with `preload` for `rank` only, with the weights loaded."""
    ours, theirs = _SPAWN.Pipe()
    kwargs = seed.kwargs(rank, is_driver=is_driver, queue=None)
    main = Bootstrap(standby_main, background=True, paced=True)
    standby = _start(seed, rank, main, {**kwargs, "orders": theirs, "preload": preload}, server)
    theirs.close()
    standby.orders, standby.rank = ours, rank if preload else None
    return standby


def start_standby_parent(seed: WorkerSeed, requests: socket.socket, server: ForkServer | None) -> Any:
    """Start the process that forks standbys, and return the process. It waits for requests over `requests`."""
    about = {
        "target": Bootstrap(standby_parent_main, background=True, paced=True),
        "kwargs": {"requests": requests, "vllm_config": seed.vllm_config},
        "name": "StandbyParent",
        "daemon": True,
    }
    # Compiled code is for a number of threads: that of the first rank, which the other ranks have too.
    with OMPProcessManager(seed.vllm_config).configure_omp_envs(rank=0, local_rank=0):
        return _run(about, server)


def _run(about: dict[str, Any], server: ForkServer | None) -> Any:
    """Start a process: forked where possible, else spawned."""
    if server is not None:
        forked = ForkedProcess(server, **about)
        try:
            forked.start()
            return forked
        except CannotFork as error:
            logger.warning("%s is started as a new interpreter, which takes longer: %s", about["name"], error)
    process = _SPAWN.Process(**about)
    process.start()
    return process


def _start(
    seed: WorkerSeed, rank: int, main: Bootstrap, kwargs: dict[str, Any], server: ForkServer | None
) -> ReplacementProcess:
    ready_reader, ready_writer = _SPAWN.Pipe(duplex=False)
    death_reader, death_writer = _SPAWN.Pipe(duplex=False)
    about = {
        "target": main,  # callable once it is unpickled
        "kwargs": {**kwargs, "ready_pipe": ready_writer, "death_pipe": death_reader},
        "name": f"VllmWorker-{rank}",
        "daemon": True,
    }
    with OMPProcessManager(seed.vllm_config).configure_omp_envs(rank=rank, local_rank=seed.local_rank(rank)):
        process = _run(about, server)
    ready_writer.close()
    death_reader.close()
    return ReplacementProcess(process, ready_reader, death_writer, kwargs["shared_worker_lock"])
