"""The new processes of some ranks: standbys as far as there are any, else started anew.

A standby may be gone, or fail as it takes its rank: that costs the time until then, not the recovery.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.engine.worker_pool.spawning import Newcomer, start_replacement

if TYPE_CHECKING:
    from holdfast.hosts.vllm.engine.worker_pool.executor import WorkerPoolExecutor

logger = logging.getLogger("holdfast")


class ReplacementProcesses:
    """Of one replacement, in the order of `ranks`; `queue` is the host's handle of what they are to read from."""

    def __init__(self, executor: WorkerPoolExecutor, ranks: Sequence[int], queue: Any) -> None:
        self._executor = executor
        self._queue = queue
        self._ranks = ranks
        self._all: list[Newcomer] = []

    def start(self) -> None:
        """All at once."""
        for rank in self._ranks:
            self._all.append(self._take_standby(rank) or self._start_anew(rank))

    def await_ready(self, deadline: float) -> list[Any]:
        """The host's handles of workers with their weights read. Raises `RecoveryFailed`."""
        return [self._await_one(place, deadline) for place in range(len(self._all))]

    def kill(self) -> None:
        for newcomer in self._all:
            newcomer.kill()

    @property
    def pids(self) -> dict[int, int]:
        return {n.rank: n.process.pid for n in self._all if n.rank is not None}

    @property
    def standbys_used(self) -> int:
        return sum(newcomer.was_standby for newcomer in self._all)

    def _start_anew(self, rank: int) -> Newcomer:
        is_driver = self._executor._is_driver_worker(rank)
        return start_replacement(self._executor.seed, rank, is_driver=is_driver, queue=self._queue)

    def _take_standby(self, rank: int) -> Newcomer | None:
        standby = self._executor.standbys.take(rank)
        if standby is None:
            return None
        try:
            standby.take_over(rank, is_driver=self._executor._is_driver_worker(rank), queue=self._queue)
        except RecoveryFailed as error:
            self._give_up(standby, error)
            return None
        return standby

    def _await_one(self, place: int, deadline: float) -> Any:
        newcomer = self._all[place]
        try:
            return newcomer.await_ready(deadline)
        except RecoveryFailed as error:
            if not newcomer.was_standby:
                raise
            self._give_up(newcomer, error)
        self._all[place] = self._start_anew(self._ranks[place])
        return self._all[place].await_ready(deadline)

    def _give_up(self, standby: Newcomer, error: RecoveryFailed) -> None:
        logger.warning("a standby did not take rank %s, which gets a process that starts anew: %s", standby.rank, error)
        standby.kill()
        self._executor.standbys.disappointed(str(error))
