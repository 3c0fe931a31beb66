"""The new processes of some ranks: standbys as far as the pool has any, new processes for the rest.

A standby that has died, or that fails as it takes its rank, costs time until then but does not fail the recovery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from holdfast.core.errors import RecoveryFailed
from holdfast.core.faults.redaction import account_of
from holdfast.hosts.vllm.engine.worker_pool.spawning import ReplacementProcess
from holdfast.hosts.vllm.engine.worker_pool.standby_pool import StandbyPool

logger = logging.getLogger("holdfast")


class Replacement(Protocol):
    """A process that becomes the worker of a rank, on any node."""

    rank: int | None

    @property
    def pid(self) -> int | None: ...

    @property
    def was_standby(self) -> bool: ...

    def await_ready(self, deadline: float) -> Any:
        """Return the host's handle of the worker once the weights are loaded. Raises `RecoveryFailed`."""
        ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class ReplacementResult:
    """The outcome of a replacement of workers."""

    pids: dict[int, int]  # the new process of each rank
    standbys_used: int
    elapsed_s: float


class ReplacementProcesses:
    """The processes of a replacement, in the order of `ranks`.

    Args:
        start: starts a process for a rank.
        assign: assigns a rank to a standby. Raises `RecoveryFailed` when the standby has ended.
        is_here: tells whether a standby of this node can become a rank.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        standbys: StandbyPool,
        start: Callable[[int], Replacement],
        assign: Callable[[ReplacementProcess, int], None],
        is_here: Callable[[int], bool] = lambda rank: True,
    ) -> None:
        self._is_here = is_here
        self._ranks = ranks
        self._standbys = standbys
        self._start = start
        self._assign = assign
        self._processes: list[Replacement] = []

    def start(self) -> None:
        """Assign or start the processes of all ranks. Does not wait for them."""
        for rank in self._ranks:
            self._processes.append(self._take_standby(rank) or self._start(rank))

    def await_ready(self, deadline: float) -> list[Any]:
        """Return the host's handles of the workers once all weights are loaded. Raises `RecoveryFailed`."""
        return [self._await_process(index, deadline) for index in range(len(self._processes))]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()

    @property
    def pids(self) -> dict[int, int]:
        return {p.rank: p.pid for p in self._processes if p.rank is not None and p.pid is not None}

    @property
    def standbys_used(self) -> int:
        return sum(process.was_standby for process in self._processes)

    def _take_standby(self, rank: int) -> ReplacementProcess | None:
        standby = self._standbys.take(rank) if self._is_here(rank) else None
        if standby is None:
            return None
        try:
            self._assign(standby, rank)
        except RecoveryFailed as error:
            self._discard(standby, error)
            return None
        return standby

    def _await_process(self, index: int, deadline: float) -> Any:
        """Wait for a process; where a standby fails, start another process for the rank and wait for that."""
        process = self._processes[index]
        try:
            return process.await_ready(deadline)
        except RecoveryFailed as error:
            if not process.was_standby:
                raise
            self._discard(process, error)
        self._processes[index] = self._start(self._ranks[index])
        return self._processes[index].await_ready(deadline)

    def _discard(self, standby: Replacement, error: RecoveryFailed) -> None:
        logger.warning("a standby failed to become rank %s; starting a new process instead: %s", standby.rank, error)
        standby.kill()
        self._standbys.report_failure(account_of(error).message)
