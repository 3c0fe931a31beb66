"""How the processes of ranks are started, watched and killed: here, or by the agent of another node.

The executor does not know which it talks to, so that no step of a repair exists twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from holdfast.hosts.vllm.engine.worker_pool.remote_ranks import RemoteReplacement, remote_worker
from holdfast.hosts.vllm.engine.worker_pool.replacement_processes import Replacement
from holdfast.sentinel.nodes import NodeWatch


class Launcher(Protocol):
    """Processes of some ranks of an engine core."""

    def worker(self, rank: int) -> Any:
        """Return the host's handle of the present worker of a rank."""
        ...

    def start(self, rank: int, queue: Any) -> Replacement:
        """Start a new process for a rank, which reads calls from `queue`, the host's handle."""
        ...

    def install(self, rank: int, worker: Any) -> None:
        """Take `worker` for the present worker of a rank."""
        ...


class LocalLauncher:
    """Processes of this node.

    Args:
        workers: returns the host's list of workers, by rank.
        start: starts the process of a replacement.
    """

    def __init__(self, workers: Callable[[], list[Any]], start: Callable[[int, Any], Replacement]) -> None:
        self._workers = workers
        self.start = start

    def worker(self, rank: int) -> Any:
        """Return the host's handle of the present worker of a rank."""
        return self._workers()[rank]

    def install(self, rank: int, worker: Any) -> None:
        """Take `worker` for the present worker of a rank."""
        self._workers()[rank] = worker


class AgentLauncher:
    """Processes of further nodes, by their agents."""

    def __init__(self, watch: NodeWatch) -> None:
        self._watch = watch

    def worker(self, rank: int) -> Any:
        """Return the host's handle of the present worker of a rank."""
        return remote_worker(self._watch, rank)

    def start(self, rank: int, queue: Any) -> Replacement:
        """Order a new process for a rank."""
        return RemoteReplacement(self._watch, rank, queue)

    def install(self, rank: int, worker: Any) -> None:
        """Do nothing: the agent has told of the new process."""


class Launchers:
    """The launcher of each rank: this node has the first ranks, agents have the others."""

    def __init__(self, here: Launcher, ranks_here: int, watch: NodeWatch | None) -> None:
        self._here, self._ranks_here = here, ranks_here
        self._agents = AgentLauncher(watch) if watch is not None else None

    def of(self, rank: int) -> Launcher:
        """Return the launcher of a rank."""
        if self.is_here(rank) or self._agents is None:
            return self._here
        return self._agents

    def is_here(self, rank: int) -> bool:
        """Return whether a rank is on this node."""
        return rank < self._ranks_here

    def elsewhere(self, ranks: Sequence[int] | set[int] | frozenset[int]) -> set[int]:
        """Return those of the ranks that are on further nodes."""
        return {rank for rank in ranks if not self.is_here(rank)}
