"""Communicators in memory, with collectives that block. For tests and simulation; no sockets.

A group holds the ranks of one epoch. A collective ends when every rank takes part or when a rank breaks the group;
a broken group stays broken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.messages import Rendezvous

T = TypeVar("T")


class CollectiveBroken(Exception):
    """Error of a collective in a broken group."""


@dataclass
class FakeGroup:
    """The ranks of an epoch; open until closed, ready once every rank has joined."""

    size: int
    joined: set[int] = field(default_factory=set)
    closed: bool = False
    broken: bool = False
    rounds: list[dict[int, object]] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return len(self.joined) == self.size

    def contribute(self, rank: int, value: object) -> dict[int, object]:
        """Add the value of a rank to the first round without a value of the rank; return the round."""
        for parts in self.rounds:
            if rank not in parts:
                parts[rank] = value
                return parts
        self.rounds.append({rank: value})
        return self.rounds[-1]


class FakeNetwork:
    """The network of a lockstep group. Opens and closes the rendezvous of each epoch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self._groups: dict[int, FakeGroup] = {}

    def rank(self, rank: int) -> FakeCommunicators:
        """Return the communicators of a rank, in the group with which all ranks start."""
        started = self._groups.setdefault(-1, FakeGroup(self.size, set(range(self.size)), closed=True))
        return FakeCommunicators(self, rank, started)

    def open(self, epoch: int) -> Rendezvous:
        """Open the rendezvous of an epoch and close the rendezvous of every older epoch."""
        with self.changed:
            for older in [e for e in self._groups if 0 <= e < epoch]:
                self._close(older)
            self._groups.setdefault(epoch, FakeGroup(self.size))
        return Rendezvous("memory", 0, epoch)

    def close(self, epoch: int) -> None:
        """Close the rendezvous of an epoch: ranks that wait in the rendezvous fail."""
        with self.changed:
            self._close(epoch)

    def group(self, epoch: int) -> FakeGroup | None:
        """Return the group in which the ranks of an epoch meet, or None once closed."""
        found = self._groups.get(epoch)
        return None if found is None or found.closed else found

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `done` holds; return whether `done` held within `timeout_s`."""
        with self.changed:
            return self.changed.wait_for(done, timeout_s)

    def _close(self, epoch: int) -> None:
        if epoch in self._groups:
            self._groups[epoch].closed = True
            self.changed.notify_all()


class FakeCommunicators:
    """Implements `Communicators` in memory."""

    def __init__(self, network: FakeNetwork, rank: int, group: FakeGroup) -> None:
        self._network = network
        self._rank = rank
        self._group = group
        self._breaks = 0
        self._mended = 0
        self._calls = 0
        self.waits_in: str | None = None  # the collective under way; the same text for the same call

    @property
    def broken(self) -> bool:
        return self._breaks != self._mended

    @property
    def any_placeholder(self) -> bool:
        return False

    def break_all(self) -> int:
        if self._network.size == 1:
            return 0
        with self._network.changed:
            self._breaks += 1
            newly = not self._group.broken
            self._group.broken = True
            self._network.changed.notify_all()
        return (self._network.size - 1) * newly

    def rebuild(self, rendezvous: Rendezvous, timeout_s: float) -> None:
        if self._network.size == 1:
            return
        breaks = self._breaks
        group = self._join(rendezvous, timeout_s)
        if breaks != self._breaks:
            with self._network.changed:
                group.broken = True
            raise RecoveryFailed(f"the communicators of epoch {rendezvous.epoch} were broken while they were made")
        self._group, self._mended = group, breaks

    def unrebuildable(self) -> tuple[str, ...]:
        return ()

    def all_reduce(self, value: float, timeout_s: float) -> float:
        """Return the sum over all ranks. Raises as `all_gather` does."""
        return sum(self.all_gather(value, timeout_s))

    def all_gather(self, value: T, timeout_s: float) -> list[T]:
        """Return the value of every rank, in the order of the ranks.

        Values of different steps are not told apart, as on a real network.

        Raises:
            CollectiveBroken: the group is or gets broken.
            TimeoutError: a rank took no part within `timeout_s`.
        """
        network, group = self._network, self._group
        with network.changed:
            if group.broken:
                raise CollectiveBroken(f"rank {self._rank}: connection closed by peer before it began")
            parts = group.contribute(self._rank, value)
            network.changed.notify_all()
        if not self._wait(lambda: group.broken or len(parts) == group.size, timeout_s):
            raise TimeoutError(f"rank {self._rank} waited {timeout_s:g} s for its peers")
        if len(parts) < group.size:
            raise CollectiveBroken(f"rank {self._rank}: connection closed by peer")
        return [parts[rank] for rank in sorted(parts)]  # type: ignore[misc]

    def _wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        self._calls += 1
        self.waits_in = f"all_gather (call {self._calls})"
        try:
            return self._network.wait_until(done, timeout_s)
        finally:
            self.waits_in = None

    def _join(self, rendezvous: Rendezvous, timeout_s: float) -> FakeGroup:
        with self._network.changed:
            group = self._network.group(rendezvous.epoch)
            if group is None:
                raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} is gone")
            group.joined.add(self._rank)
            self._network.changed.notify_all()
        came = self._network.wait_until(lambda: group.ready or group.closed, timeout_s)
        if not group.ready:
            why = "the rendezvous was closed" if came else f"the peers did not come within {timeout_s:g} s"
            raise RecoveryFailed(f"the ranks of epoch {rendezvous.epoch} did not meet: {why}")
        return group
