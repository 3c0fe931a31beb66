"""The places of a worker's process groups through its rebuilds, and what stood in them before.

An attempt that fails leaves the old groups where they are held: broken, and known here. The next one that
works puts its groups in the places of all that stood there since.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.communicators import stale
from holdfast.hosts.vllm.communicators.making import make_torch_groups, standing_groups
from holdfast.hosts.vllm.communicators.reaping import Reaper
from holdfast.hosts.vllm.communicators.tracking import TorchGroup, TrackedGroups

logger = logging.getLogger("holdfast")


class Places:
    """Main thread only. Empty between rebuilds."""

    def __init__(self, tracked: TrackedGroups) -> None:
        self._tracked = tracked
        self._groups: list[TorchGroup] = []
        self._stale: list[Any] = []  # the only references to them that a finished rebuild leaves
        self._stale_place: list[int] = []
        self._reaper = Reaper()

    def __len__(self) -> int:
        return len(self._groups)

    def take(self) -> bool:
        """What stands now is to be replaced; whether any of it has a peer."""
        standing = standing_groups(self._tracked)
        if not self._groups:
            self._groups = [group for group, _ in standing]
        names = [group.name for group in self._groups]
        for group, made in standing:
            self._stale.append(made)
            self._stale_place.append(names.index(group.name))
        shared = any(group.size > 1 for group in self._groups)
        if not shared:
            self._forget()
        return shared

    def make(self, store: Any, deadline: float) -> list[Any]:
        return make_torch_groups(self._groups, store, deadline)

    def hand_over(self, made: list[Any], roots: Iterable[Any]) -> None:
        """The new groups to whoever holds an old one.

        Raises: `RecoveryFailed` naming those that cannot be given another.
        """
        renewed = {id(old): made[place] for old, place in zip(self._stale, self._stale_place, strict=True)}
        stale.replace(roots, renewed)
        if not stale.held(self._stale):
            return
        if left := stale.replace_everywhere(self._stale, renewed):
            raise RecoveryFailed(f"an old process group is still held by {', '.join(left)}")
        if count := len(stale.held(self._stale)):
            logger.info("%d old process group(s) live on in the traceback of a call that has ended", count)

    def bury(self) -> None:
        self._reaper.bury(self._stale)
        self._forget()

    def _forget(self) -> None:
        self._groups, self._stale, self._stale_place = [], [], []
