"""Where the ranks of an epoch meet: a store that the owner of the instance keeps, never a rank.

A rank that goes takes nothing with it, and closing an epoch's store releases at once whoever waits in
it. The store of the current epoch stays: NCCL makes its connections through it when they are first used.
"""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from typing import Any

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.rendezvous import Rendezvous

EPOCH_KEY = "holdfast/epoch"
HOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 1.0
MIN_TIMEOUT_S = 0.05


class RendezvousHost:
    """The stores of the epochs, in the process that owns the engine cores. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stores: dict[int, Any] = {}

    def open(self, epoch: int) -> Rendezvous:
        """A store that listens already; those of older epochs close. The same one when it is open."""
        with self._lock:
            for older in [e for e in self._stores if e < epoch]:
                del self._stores[older]
            if epoch not in self._stores:
                self._stores[epoch] = _listening_store(epoch)
            return Rendezvous(HOST, self._stores[epoch].port, epoch)

    def close(self, epoch: int) -> None:
        """Whoever waits in it fails at once. Nothing where it is closed already."""
        with self._lock:
            self._stores.pop(epoch, None)

    def close_all(self) -> None:
        with self._lock:
            self._stores.clear()


def _listening_store(epoch: int) -> Any:
    from torch.distributed import TCPStore

    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    store.set(EPOCH_KEY, str(epoch))
    return store


def enter(rendezvous: Rendezvous, scope: str, timeout_s: float) -> Any:
    """A rank's view of an epoch's store, in which `scope` keeps groups of different kinds apart.

    Raises: `RecoveryFailed` when the store is gone or belongs to another epoch.
    """
    from torch.distributed import PrefixStore

    store = _connect(rendezvous, time.monotonic() + timeout_s)
    store.set_timeout(timedelta(seconds=timeout_s))
    found = store.get(EPOCH_KEY) if store.check([EPOCH_KEY]) else b"none"
    if found != str(rendezvous.epoch).encode():
        raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} is over (epoch {found.decode()} meets there)")
    return PrefixStore(f"{scope}/{rendezvous.epoch}", store)


def _connect(rendezvous: Rendezvous, deadline: float) -> Any:
    """In short tries: torch's client goes on trying a store that closed while it connected, for all of its timeout."""
    from torch.distributed import DistError, TCPStore

    where = (rendezvous.host, rendezvous.port)
    while True:
        left_s = deadline - time.monotonic()
        _knock(rendezvous, max(left_s, MIN_TIMEOUT_S))
        timeout = timedelta(seconds=max(min(left_s, CONNECT_TIMEOUT_S), MIN_TIMEOUT_S))
        try:
            return TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timeout)
        except DistError as error:
            if time.monotonic() >= deadline:
                raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} does not answer: {error}") from error


def _knock(rendezvous: Rendezvous, timeout_s: float) -> None:
    """A store that is gone refuses at once."""
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), timeout=timeout_s).close()
    except OSError as error:
        raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} is gone: {error}") from None
