"""All collectives of one worker: torch's groups, and the host's coordinators that stand on them.

The coordinators stay the same objects and get new groups, so whatever holds a coordinator needs nothing.
Who holds a group itself is found and given the new one; a group that somebody holds on to fails the
rebuild, because a collective on it would fail in the middle of a step.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.rendezvous import Rendezvous
from holdfast.hosts.vllm.communicators.rendezvous import enter
from holdfast.hosts.vllm.communicators.state import BreakState
from holdfast.hosts.vllm.communicators.tracking import TRACKED, TrackedGroups

logger = logging.getLogger("holdfast")


class WorkerCommunicators:
    """Implements `Communicators` on a worker of the host. To be made once torch's groups stand.

    Args:
        worker: the host's worker with its model loaded; none where there are only groups.
    """

    def __init__(self, worker: Any | None = None, tracked: TrackedGroups = TRACKED) -> None:
        from holdfast.hosts.vllm.communicators.places import Places

        self._worker = worker
        self._tracked = tracked
        self._state = BreakState()
        self._places = Places(tracked)

    @property
    def broken(self) -> bool:
        return self._state.broken

    @property
    def any_placeholder(self) -> bool:
        """Whether a collective here would send nothing, because this rank was started alone and met nobody yet."""
        from holdfast.hosts.vllm.communicators.making import standing_groups
        from holdfast.hosts.vllm.communicators.tracking import is_placeholder

        standing = standing_groups(self._tracked)
        return any(is_placeholder(group) for description, group in standing if description.size > 1)

    def break_all(self) -> int:
        if not self._tracked.any_shared:
            return 0
        self._state.note()
        return self._break()

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        began = time.monotonic()
        breaks = self._state.breaks
        if not self._places.take():
            return
        self._replace_groups(rendezvous, timeout_s)
        if self.any_placeholder:
            raise RecoveryFailed(f"a group of epoch {rendezvous.epoch} is a placeholder: it would send nothing")
        if self._tracked.unwatched:
            raise RecoveryFailed(f"{self._tracked.unwatched} groups of epoch {rendezvous.epoch} could not be broken")
        if not self._state.mend(breaks):
            self._break()
            raise RecoveryFailed(f"the communicators of epoch {rendezvous.epoch} were broken while they were made")
        count = len(self._places)
        self._places.bury()
        elapsed_ms = 1e3 * (time.monotonic() - began)
        logger.info("%d process groups rebuilt in %.0f ms (epoch %d)", count, elapsed_ms, rendezvous.epoch)

    def unrebuildable(self) -> tuple[str, ...]:
        from holdfast.hosts.vllm.communicators.limits import limits_of, limits_of_torch
        from holdfast.hosts.vllm.communicators.stale import fixed_holders

        found = [*limits_of(_coordinators(), self._worker), *limits_of_torch(self._tracked)]
        if self._tracked.any_shared:  # what has no peer is never rebuilt, and to look for holders takes time
            groups = [group for _, group in self._tracked.torch_groups()]
            found += [f"{holder} holds a process group and cannot be given another" for holder in fixed_holders(groups)]
        return tuple(found)

    def _replace_groups(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        try:
            made = self._places.make(enter(rendezvous, "workers", timeout_s), deadline)
            coordinators = _coordinators()
            self._places.hand_over(made, [*coordinators, self._worker])
            _reset(coordinators)
            if self._tracked.any_nccl:
                from holdfast.hosts.vllm.communicators.nccl import rebuild_nccl

                rebuild_nccl(coordinators)
        except RecoveryFailed:
            raise
        except Exception as error:  # torch's errors are many, and all mean that the ranks did not meet
            raise RecoveryFailed(f"the ranks of epoch {rendezvous.epoch} did not meet: {error}") from error

    def _break(self) -> int:
        try:
            broken = self._tracked.sockets.break_all()
            if self._tracked.any_nccl:
                from holdfast.hosts.vllm.communicators.nccl import break_nccl

                broken += break_nccl(_coordinators(), [group for _, group in self._tracked.torch_groups()])
        except Exception:
            logger.exception("breaking the communicators of pid %d failed", os.getpid())
            return 0
        return broken


def _coordinators() -> list[Any]:
    """The host's live coordinators; none in a process that never loaded them."""
    parallel_state = sys.modules.get("vllm.distributed.parallel_state")
    if parallel_state is None:
        return []
    return [found for ref in parallel_state._groups.values() if (found := ref()) is not None]


def _reset(coordinators: list[Any]) -> None:
    """Sends that were under way failed with their group; waiting for them would fail the next send."""
    for coordinator in coordinators:
        coordinator._pending_isends.clear()
        coordinator.mq_broadcaster = None  # a newcomer shares none; over the group all are alike
