"""The collectives of an engine core: its data-parallel group, which counts unfinished requests in lockstep.

Only engine cores of a mixture of experts under data parallelism have this group. Elsewhere every call does nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.messages import Rendezvous
from holdfast.hosts.vllm.communicators import holders
from holdfast.hosts.vllm.communicators.rebuild import GroupDestroyer, make_stateless_group
from holdfast.hosts.vllm.communicators.rendezvous import join_rendezvous
from holdfast.hosts.vllm.communicators.tracking import TRACKED, BreakState, TrackedGroups

logger = logging.getLogger("holdfast")


class EngineCommunicators:
    """Implements `Communicators` on an engine core of the host."""

    def __init__(self, engine: Any, tracked: TrackedGroups = TRACKED) -> None:
        self._engine = engine
        self._tracked = tracked
        self._state = BreakState()
        self._destroyer = GroupDestroyer()

    @property
    def broken(self) -> bool:
        return self._state.broken

    @property
    def any_placeholder(self) -> bool:
        """Whether the engine core joins a lockstep group and has met no peer yet."""
        return self._group is not None and self._group.size() != self._engine.dp_size

    def break_all(self) -> int:
        if self._group is None:
            return 0
        self._state.mark_broken()
        try:
            return self._tracked.sockets.break_all()
        except Exception:
            logger.exception("breaking the data-parallel group failed")
            return 0

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        if self._group is None:
            return
        breaks = self._state.breaks
        try:
            self._replace_group(rendezvous, timeout_s)
        except RecoveryFailed:
            raise
        except Exception as error:  # torch raises many types, and all mean that the ranks did not meet
            raise RecoveryFailed(f"the engine cores of epoch {rendezvous.epoch} did not meet: {error}") from error
        if not self._state.mark_rebuilt(breaks):
            self._tracked.sockets.break_all()
            raise RecoveryFailed(f"the group of epoch {rendezvous.epoch} was broken while it was made")

    def unrebuildable(self) -> tuple[str, ...]:
        if self._group is None:
            return ()
        if not self._tracked.knows(self._group) or self._tracked.unwatched:
            return ("the data-parallel group of the engine cores was made before Holdfast attached",)
        fixed = holders.fixed_holders([self._group])
        return tuple(f"{holder} holds the data-parallel group and cannot be given another" for holder in fixed)

    @property
    def _group(self) -> Any | None:
        return getattr(self._engine, "dp_group", None)

    def _replace_group(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        engine = self._engine
        timeout = engine.vllm_config.parallel_config.cpu_distributed_timeout
        store = join_rendezvous(rendezvous, "engines", timeout_s)
        made = make_stateless_group(store, engine.dp_rank, engine.dp_size, timeout, deadline)
        old, engine.dp_group, engine.dp_store = [engine.dp_group], made, store
        if holders.still_referenced(old) and (left := holders.replace_everywhere(old, {id(old[0]): made})):
            raise RecoveryFailed(f"the old data-parallel group is still referenced by {', '.join(left)}")
        self._destroyer.destroy(old)
