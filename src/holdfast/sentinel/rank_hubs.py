"""The sockets of an engine core to its ranks: one for its own node, and one for further nodes and their agents.

The sentinel's thread, except for `await_stopped`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from holdfast.core.protocol import messages as m
from holdfast.sentinel.nodes import is_agent
from holdfast.sentinel.thread import worker_identity
from holdfast.wire import Delivery, Hub, Station

_LOOK_S = 0.1


def await_stopped(
    ranks: Iterable[int],
    ask: Callable[[set[int]], None],
    changed: threading.Condition,
    not_stopped: Callable[[], frozenset[int]],
    timeout_s: float,
) -> set[int]:
    """Ask ranks to stop, again and again, because a rank's link is made anew after a cut.

    Returns:
        The ranks that said within `timeout_s` that they stopped.
    """
    asked, deadline = set(ranks), time.monotonic() + timeout_s
    left = set(asked)
    while left and time.monotonic() < deadline:
        ask(left)
        with changed:
            changed.wait_for(lambda: not not_stopped(), _LOOK_S)
            left &= not_stopped()
    return asked - left


class RankHubs:
    """Hubs to the ranks of an engine core.

    Args:
        address_for_nodes: where further nodes reach the engine core; empty on a single node.
    """

    def __init__(self, station: Station, own_address: str, address_for_nodes: str) -> None:
        self._near: Hub = station.bind(own_address)
        self._far: Hub | None = station.bind(address_for_nodes) if address_for_nodes else None
        self._far_ranks: set[int] = set()

    def is_of_agent(self, delivery: Delivery) -> bool:
        """Return whether a message comes from an agent."""
        return delivery.endpoint is self._far and is_agent(delivery.peer)

    def is_of_rank(self, delivery: Delivery, rank: int) -> bool:
        """Return whether a message comes from a rank; remember over which hub the rank is reached."""
        if delivery.peer != worker_identity(rank):
            return False
        if delivery.endpoint is self._far:
            self._far_ranks.add(rank)
        return True

    def send(self, rank: int, message: m.ToWorker) -> bool:
        """Send a command to a rank; return false where the rank is not reached."""
        hub = self._far if self._far is not None and rank in self._far_ranks else self._near
        return hub.send(worker_identity(rank), m.encode(message))

    def send_to_agent(self, peer: bytes, data: bytes) -> None:
        """Send a message to an agent, which may not be there."""
        if self._far is not None:
            self._far.send(peer, data)
