"""The port that every wire implements.

A `Station` belongs to a single thread, the sentinel's: it holds that thread's endpoints and waits on all of them at
once. Only `wake` may be called from another thread. Sending never waits: a message that cannot be taken now is refused,
and the sender's bounded waits handle the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

MAX_FRAME_BYTES = 1 << 20
MAX_QUEUED_MESSAGES = 1000


class Hub(Protocol):
    """The bound end: many peers, each with a name."""

    @property
    def address(self) -> str: ...

    def send(self, peer: bytes, data: bytes) -> bool:
        """Send a message; return false for an unknown or stuck peer."""
        ...


class Spoke(Protocol):
    """The connecting end, with a single hub."""

    def send(self, data: bytes) -> bool: ...


@dataclass(frozen=True)
class Delivery:
    """A message that arrived at `endpoint`; `peer` is empty at a spoke."""

    endpoint: Hub | Spoke
    peer: bytes
    data: bytes


class Station(Protocol):
    """The endpoints of a single thread."""

    def bind(self, address: str) -> Hub:
        """Bind a hub. Raises `PortInUse` when the address is taken, else `WorldError`."""
        ...

    def connect(self, address: str, identity: bytes) -> Spoke: ...

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next message, or None after `timeout_s` or a `wake`."""
        ...

    def wake(self) -> None:
        """Let a waiting `receive` return now. Any thread."""
        ...

    def close(self) -> None: ...
