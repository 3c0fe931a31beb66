"""All collectives of one worker: torch's groups, and the host's coordinators over them.

The coordinators stay the same objects and get new groups, so a reference to a coordinator stays valid. A reference to
a group itself is found and replaced. A reference that cannot be replaced fails the rebuild, because a collective over
the old group would fail in the middle of a step.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.vllm.communicators import holders
from holdfast.hosts.vllm.communicators.limits import limits_of, limits_of_torch
from holdfast.hosts.vllm.communicators.rebuild import GroupReplacement
from holdfast.hosts.vllm.communicators.rendezvous import join_rendezvous
from holdfast.hosts.vllm.communicators.tracking import (
    TRACKED,
    BreakState,
    TrackedGroups,
    current_groups,
    is_placeholder,
)

logger = logging.getLogger("holdfast")


class WorkerCommunicators:
    """Implements `Communicators` on a worker of the host. Construct after torch's groups.

    Args:
        worker: the host's worker with its model loaded; None where there are only groups.
    """

    def __init__(self, worker: Any | None = None, tracked: TrackedGroups = TRACKED) -> None:
        self._worker = worker
        self._tracked = tracked
        self._state = BreakState()
        self._replacement = GroupReplacement(tracked)

    @property
    def broken(self) -> bool:
        return self._state.broken

    @property
    def any_placeholder(self) -> bool:
        """Whether a collective here would send nothing: the rank has placeholder groups and has met no peer."""
        current = current_groups(self._tracked)
        return any(is_placeholder(group) for description, group in current if description.size > 1)

    @property
    def any_shared(self) -> bool:
        """Whether any group has a peer."""
        return self._tracked.any_shared

    def break_all(self) -> int:
        if not self._tracked.any_shared:
            return 0
        self._state.mark_broken()
        return self._break()

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        began = time.monotonic()
        breaks = self._state.breaks
        if not self._replacement.collect():
            return
        self._replace_groups(rendezvous, timeout_s)
        if self.any_placeholder:
            raise RecoveryFailed(f"a group of epoch {rendezvous.epoch} is a placeholder and would send nothing")
        if self._tracked.unwatched:
            raise RecoveryFailed(f"{self._tracked.unwatched} groups of epoch {rendezvous.epoch} could not be broken")
        if not self._state.mark_rebuilt(breaks):
            self._break()
            raise RecoveryFailed(f"the communicators of epoch {rendezvous.epoch} were broken while they were made")
        count = len(self._replacement)
        self._replacement.destroy_old()
        elapsed_ms = 1e3 * (time.monotonic() - began)
        logger.info("%d process groups rebuilt in %.0f ms (epoch %d)", count, elapsed_ms, rendezvous.epoch)

    def unrebuildable(self) -> tuple[str, ...]:
        found = [*limits_of(_coordinators(), self._worker), *limits_of_torch(self._tracked)]
        if self._tracked.any_shared:  # a group without peers is never rebuilt, and finding references takes time
            groups = [group for _, group in self._tracked.torch_groups()]
            fixed = holders.fixed_holders(groups)
            found += [f"{holder} holds a process group and cannot be given another" for holder in fixed]
        return tuple(found)

    def _replace_groups(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        try:
            made = self._replacement.make(join_rendezvous(rendezvous, "workers", timeout_s), deadline)
            coordinators = _coordinators()
            self._replacement.install(made, [*coordinators, self._worker])
            _reset(coordinators)
            if self._tracked.any_nccl:
                from holdfast.hosts.vllm.communicators.nccl import rebuild_nccl

                rebuild_nccl(coordinators, deadline)
        except RecoveryFailed:
            raise
        except Exception as error:  # torch raises many types, and all mean that the ranks did not meet
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
    """Return the host's live coordinators; empty before the host has made any."""
    parallel_state = sys.modules.get("vllm.distributed.parallel_state")
    if parallel_state is None:
        return []
    return [found for ref in parallel_state._groups.values() if (found := ref()) is not None]


def _reset(coordinators: list[Any]) -> None:
    """Forget sends under way: the sends failed with the group, and waiting would fail the next send."""
    for coordinator in coordinators:
        coordinator._pending_isends.clear()
        coordinator.mq_broadcaster = None  # a replacement has none; over the group all ranks do the same
