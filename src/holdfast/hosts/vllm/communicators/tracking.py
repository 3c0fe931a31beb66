"""The process groups of this process: recorded as they are made, with all that is needed to make them again.

The hooks observe the making of groups and change nothing about it.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d as c10d

from holdfast.hosts.vllm.communicators.gloo import GlooSockets
from holdfast.hosts.vllm.contract.communicator_touchpoints import STATELESS_GLOO_GROUP, TORCH_GROUP
from holdfast.hosts.vllm.contract.hooks import attach

_OWN_FIELDS = ("group_name", "group_size", "group_rank", "global_ranks_in_group", "backend", "timeout")


@dataclass(frozen=True)
class TorchGroup:
    """How torch made a group that torch itself keeps. `ranks` is empty for the default group."""

    name: str
    size: int
    rank: int
    ranks: tuple[int, ...]
    backend: Any
    timeout: timedelta
    options: dict[str, Any]

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> TorchGroup:
        """Describe a group by the arguments of `_new_process_group_helper`, without the store of the epoch."""
        options = {key: value for key, value in arguments.items() if key not in {*_OWN_FIELDS, "store"}}
        name, size, rank, ranks, backend, timeout = (arguments[key] for key in _OWN_FIELDS)
        return cls(name, size, rank, tuple(ranks), backend, timeout, options)

    @property
    def is_default(self) -> bool:
        return not self.ranks


class BreakState:
    """Whether the communicators of a process are broken. Any thread breaks them, the main thread rebuilds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._breaks = 0
        self._breaks_rebuilt = 0

    @property
    def broken(self) -> bool:
        return self._breaks != self._breaks_rebuilt

    @property
    def breaks(self) -> int:
        """Number of breaks so far. Read before a rebuild and given to `mark_rebuilt` after the rebuild."""
        return self._breaks

    def mark_broken(self) -> None:
        with self._lock:
            self._breaks += 1

    def mark_rebuilt(self, breaks: int) -> bool:
        """Count the communicators as whole; return False where a break came after the given number of breaks."""
        with self._lock:
            if breaks != self._breaks:
                return False
            self._breaks_rebuilt = breaks
            return True


class TrackedGroups:
    """Torch's groups in the order of creation, and the gloo sockets of all groups."""

    def __init__(self) -> None:
        self.sockets = GlooSockets()
        self._lock = threading.Lock()
        self._made: list[tuple[weakref.ref[Any], TorchGroup | None]] = []
        self._unwatched = 0
        self._shared = False

    @property
    def unwatched(self) -> int:
        """Number of groups over gloo that cannot be broken, because no connections were found."""
        return self._unwatched

    def make(self, create: Callable[[], Any], description: TorchGroup | None = None) -> Any:
        """Return the result of `create`; record the group and the connections.

        Args:
            description: how to make the group again, for groups that torch itself keeps.
        """
        before = self.sockets.present()
        made = create()
        group = made[0] if isinstance(made, tuple) else made
        found = self.sockets.add_since(before)
        if hasattr(group, "size"):  # otherwise this rank is no member of the group
            self._remember(group, description, found)
        return made

    def torch_groups(self) -> list[tuple[TorchGroup, Any]]:
        """Return torch's groups that were made under watch and are still alive, oldest first."""
        with self._lock:
            made = [(description, ref()) for ref, description in self._made if description is not None]
        return [(description, group) for description, group in made if group is not None]

    @property
    def any_shared(self) -> bool:
        """Whether any group made so far has a peer."""
        return self._shared

    @property
    def any_nccl(self) -> bool:
        return any("nccl" in str(group.backend) for group, _ in self.torch_groups())

    def knows(self, group: Any) -> bool:
        with self._lock:
            return any(ref() is group for ref, _ in self._made)

    def _remember(self, group: Any, description: TorchGroup | None, found: int) -> None:
        with self._lock:
            self._made = [(ref, d) for ref, d in self._made if ref() is not None]
            self._made.append((weakref.ref(group), description))
            self._shared = self._shared or group.size() > 1
            self._unwatched += group.size() > 1 and found == 0 and over_gloo(group)


def current_groups(tracked: TrackedGroups) -> list[tuple[TorchGroup, Any]]:
    """Return the groups that torch keeps now, without groups that the host ended or an earlier rebuild replaced."""
    return [(description, group) for description, group in tracked.torch_groups() if group in c10d._world.pg_map]


def is_placeholder(group: Any) -> bool:
    """Tell whether a group uses torch's backend that sends nothing."""
    return any("fake" in group._get_backend(device).name().lower() for device in group._device_types)


def over_gloo(group: Any) -> bool:
    import torch

    if torch.device("cpu") not in group._device_types:
        return False
    return "gloo" in group._get_backend(torch.device("cpu")).name()


TRACKED = TrackedGroups()


# ---- hooks


def attach_communicator_hooks() -> None:
    """Track all groups made from now on. Call before the process makes any; imports torch and the host."""
    watch_torch_groups()
    attach(STATELESS_GLOO_GROUP, _watch_stateless_group)


def watch_torch_groups() -> None:
    """Track the groups that torch keeps. Needs no host."""
    attach(TORCH_GROUP, _watch_torch_group)


def _watch_torch_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    return TRACKED.make(lambda: original(*args, **kwargs), TorchGroup.from_arguments(arguments))


def _watch_stateless_group(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return TRACKED.make(lambda: original(*args, **kwargs))
