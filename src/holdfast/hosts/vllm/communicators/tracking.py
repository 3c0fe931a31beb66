"""Every process group that was made under watch, with what is needed to make it again. Makes none itself."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from holdfast.hosts.vllm.communicators.gloo import GlooSockets


@dataclass(frozen=True)
class TorchGroup:
    """How torch made one of its groups. `ranks` is empty for its default group."""

    name: str
    size: int
    rank: int
    ranks: tuple[int, ...]
    backend: Any
    timeout: timedelta
    options: dict[str, Any]

    @property
    def is_default(self) -> bool:
        return not self.ranks


class TrackedGroups:
    """What a process's hooks saw: torch's groups in the order of their making, and all gloo sockets."""

    def __init__(self) -> None:
        self.sockets = GlooSockets()
        self._lock = threading.Lock()
        self._made: list[tuple[weakref.ref[Any], TorchGroup | None]] = []
        self._unwatched = 0
        self._shared = False

    @property
    def unwatched(self) -> int:
        """Groups over gloo whose connections were not found: they cannot be broken."""
        return self._unwatched

    def make(self, create: Callable[[], Any], description: TorchGroup | None = None) -> Any:
        """What `create` returns; its connections, if it has any, are remembered.

        `description` is for groups that torch itself keeps.
        """
        before = self.sockets.present()
        made = create()
        group = made[0] if isinstance(made, tuple) else made
        found = self.sockets.add_since(before)
        if hasattr(group, "size"):  # else this rank is no member of it
            self._remember(group, description, found)
        return made

    def torch_groups(self) -> list[tuple[TorchGroup, Any]]:
        """Torch's groups that were made under watch and still are, oldest first."""
        with self._lock:
            made = [(description, ref()) for ref, description in self._made if description is not None]
        return [(description, group) for description, group in made if group is not None]

    @property
    def any_shared(self) -> bool:
        """Whether any group has a peer; what holds for the groups of a process holds for good."""
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


def is_placeholder(group: Any) -> bool:
    """Whether it was made by torch's backend that sends nothing."""
    return any("fake" in group._get_backend(device).name().lower() for device in group._device_types)


def over_gloo(group: Any) -> bool:
    import torch

    if torch.device("cpu") not in group._device_types:
        return False
    return "gloo" in group._get_backend(torch.device("cpu")).name()


TRACKED = TrackedGroups()
