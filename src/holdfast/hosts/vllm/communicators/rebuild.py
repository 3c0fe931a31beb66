"""Make process groups again and put them in the place of the old ones; shared by engine cores and workers.

A group keeps its name, so a lookup by name finds the new group, and the names agree between the ranks whatever the
ranks did before. Every wait ends at a deadline, or at once when the store closes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d as c10d

from holdfast.core.errors import RecoveryFailed
from holdfast.hosts.vllm.communicators import holders
from holdfast.hosts.vllm.communicators.tracking import TorchGroup, TrackedGroups, current_groups

logger = logging.getLogger("holdfast")

DESTROY_TIMEOUT_S = 10.0


class GroupDestroyer:
    """Destroys groups beside the main thread: gloo needs some 20 ms for each, without the interpreter's lock."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def destroy(self, groups: list[Any]) -> None:
        """Drop the last references to `groups` on another thread. Takes over the list; waits for the last call."""
        if self._thread is not None:
            self._thread.join(DESTROY_TIMEOUT_S)
        self._thread = threading.Thread(target=groups.clear, name="holdfast-reaper", daemon=True)
        self._thread.start()


class GroupReplacement:
    """Old process groups of a worker and the groups that replace them. Main thread; empty between rebuilds.

    A rebuild that fails leaves the old groups broken and recorded here. The next rebuild that works replaces all
    groups recorded since.
    """

    def __init__(self, tracked: TrackedGroups) -> None:
        self._tracked = tracked
        self._groups: list[TorchGroup] = []
        self._old: list[Any] = []  # the only references to the old groups that a finished rebuild leaves
        self._old_index: list[int] = []  # of each old group, its place in `_groups`
        self._destroyer = GroupDestroyer()

    def __len__(self) -> int:
        return len(self._groups)

    def collect(self) -> bool:
        """Record the current groups as old; return whether any of them has a peer."""
        current = current_groups(self._tracked)
        if not self._groups:
            self._groups = [group for group, _ in current]
        names = [group.name for group in self._groups]
        for group, made in current:
            self._old.append(made)
            self._old_index.append(names.index(group.name))
        shared = any(group.size > 1 for group in self._groups)
        if not shared:
            self._clear()
        return shared

    def make(self, store: Any, deadline: float) -> list[Any]:
        return make_torch_groups(self._groups, store, deadline)

    def install(self, made: list[Any], roots: Iterable[Any]) -> None:
        """Replace every reference to an old group, beginning with objects reachable from `roots`.

        Raises:
            RecoveryFailed: naming the objects that keep an old group and cannot be given a new one.
        """
        renewed = {id(old): made[index] for old, index in zip(self._old, self._old_index, strict=True)}
        holders.replace_reachable(roots, renewed)
        if not holders.still_referenced(self._old):
            return
        if left := holders.replace_everywhere(self._old, renewed):
            raise RecoveryFailed(f"an old process group is still referenced by {', '.join(left)}")
        if count := len(holders.still_referenced(self._old)):
            logger.info("%d old process group(s) stay alive in the traceback of a finished call", count)

    def destroy_old(self) -> None:
        self._destroyer.destroy(self._old)
        self._clear()

    def _clear(self) -> None:
        self._groups, self._old, self._old_index = [], [], []


# ---- making groups


def make_torch_groups(groups: Sequence[TorchGroup], store: Any, deadline: float) -> list[Any]:
    """Make groups from descriptions, the default group first. Destroys every group that torch had before.

    Args:
        deadline: on the monotonic clock, for meeting the peers; afterwards each group has its own timeout.
    """
    counter = c10d._world.group_count
    if c10d.is_initialized():
        c10d.destroy_process_group()
    made = [_make(group, store, deadline) for group in groups]
    c10d._world.group_count = counter  # names of groups that the host may still make stay new
    return made


def make_stateless_group(store: Any, rank: int, size: int, timeout: timedelta | None, deadline: float) -> Any:
    """Make a gloo group that torch does not keep, as the host does. `timeout` None: torch's default."""
    from vllm.distributed import utils

    group = utils.init_gloo_process_group(store, rank, size, _time_left(deadline))
    _set_timeout(group, timeout or c10d.default_pg_timeout)
    return group


def _make(group: TorchGroup, store: Any, deadline: float) -> Any:
    made, _ = c10d._new_process_group_helper(
        group.size,
        group.rank,
        list(group.ranks),
        group.backend,
        store,
        group.name,
        timeout=_time_left(deadline),
        **group.options,
    )
    if group.is_default:
        c10d._update_default_pg(made)
    ranks = group.ranks or range(group.size)
    c10d._world.pg_group_ranks[made] = {rank: index for index, rank in enumerate(ranks)}
    _set_timeout(made, group.timeout)
    return made


def _set_timeout(group: Any, timeout: timedelta) -> None:
    """Let operations of a group wait for `timeout`. Torch's own function for this goes away after 2.13."""
    for device in group._device_types:
        backend = group._get_backend(device)
        if hasattr(backend, "_set_default_timeout"):  # a placeholder waits for nobody
            backend._set_default_timeout(timeout)


def _time_left(deadline: float) -> timedelta:
    """Return at least a moment: torch takes a timeout of zero for no bound at all."""
    return timedelta(seconds=max(0.01, deadline - time.monotonic()))
