"""The rendezvous of an epoch: a store in the process that owns the instance, never in a rank.

A lost rank takes nothing with it, and closing the store of an epoch releases every waiting rank at once. On CPUs the
store closes once every rank serves again. With NCCL the store of the current epoch stays open: NCCL makes its
connections through the store when they are first used.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from datetime import timedelta
from typing import Any

from vllm.platforms import current_platform

from holdfast.core.errors import RecoveryFailed
from holdfast.core.protocol.events import Event, EventKind, InstanceView
from holdfast.core.protocol.messages import Rendezvous
from holdfast.core.states import EngineState

EPOCH_KEY = "holdfast/epoch"
HOST = "127.0.0.1"
CONNECT_TIMEOUT_S = 1.0
MIN_TIMEOUT_S = 0.05
_BACKLOG = 1024  # every rank of a large group may connect at once


class RendezvousHost:
    """The stores of the epochs, in the process that owns the engine cores. Any thread.

    Args:
        address: where the stores listen, and every rank reaches them.
    """

    def __init__(self, address: str = HOST) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._stores: dict[int, Any] = {}
        self._secrets: dict[int, str] = {}  # of the open stores: a store shows the secret of its own epoch only

    def open(self, epoch: int) -> Rendezvous:
        """Open the store of an epoch, or return the open store; close stores of older epochs. Listens on return."""
        with self._lock:
            for older in [e for e in self._stores if e < epoch]:
                self._forget(older)
            if epoch not in self._stores:
                secret = secrets.token_hex(16)
                self._stores[epoch], self._secrets[epoch] = _listening_store(self._address, epoch, secret), secret
            return Rendezvous(self._address, self._stores[epoch].port, epoch, secret=self._secrets[epoch])

    def close(self, epoch: int) -> None:
        """Close the store of an epoch, so that every waiting rank fails at once. Idempotent."""
        with self._lock:
            self._forget(epoch)

    def close_all(self) -> None:
        with self._lock:
            for epoch in tuple(self._stores):
                self._forget(epoch)

    def _forget(self, epoch: int) -> None:
        self._stores.pop(epoch, None)
        self._secrets.pop(epoch, None)


class InstanceRendezvous:
    """The stores of all lockstep groups of an instance, at `address`. Any thread."""

    def __init__(self, address: str = HOST) -> None:
        self._address = address
        self._hosts: dict[tuple[int, ...], RendezvousHost] = {}

    def open(self, group: tuple[int, ...], epoch: int) -> Rendezvous:
        """Open the store of a group in an epoch, as `RendezvousHost.open` does."""
        return self._hosts.setdefault(group, RendezvousHost(self._address)).open(epoch)

    def close(self, group: tuple[int, ...], epoch: int) -> None:
        """Close the store of a group in an epoch. Idempotent."""
        if group in self._hosts:
            self._hosts[group].close(epoch)

    def close_used(self, event: Event, view: InstanceView) -> None:
        """Close the stores of groups that serve again, where all connections are made: everywhere but with NCCL."""
        if event.kind is not EventKind.ENGINE_RECOVERED or not current_platform.is_cpu():
            return
        healthy = {e.engine_id: e.epoch for e in view.engines if e.state is EngineState.HEALTHY}
        for group in tuple(self._hosts):
            if all(engine_id in healthy for engine_id in group):
                self.close(group, healthy[group[0]])

    def close_all(self) -> None:
        """Close every store."""
        for host in tuple(self._hosts.values()):
            host.close_all()


def _listening_store(address: str, epoch: int, secret: str) -> Any:
    """Return a store that listens where the ranks are; left to itself torch listens on every interface."""
    from torch.distributed import PrefixStore, TCPStore

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
    port = listening.getsockname()[1]
    # The store owns the descriptor from here on.
    store = TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    PrefixStore(secret, store).set(EPOCH_KEY, str(epoch))
    return store


def join_rendezvous(rendezvous: Rendezvous, scope: str, timeout_s: float) -> Any:
    """Connect a rank to the store of an epoch; `scope` keeps the keys of different kinds of groups apart.

    Raises:
        RecoveryFailed: the store is gone or belongs to another epoch.
    """
    from torch.distributed import PrefixStore

    store = PrefixStore(rendezvous.secret, _connect(rendezvous, time.monotonic() + timeout_s))
    store.set_timeout(timedelta(seconds=timeout_s))
    found = store.get(EPOCH_KEY) if store.check([EPOCH_KEY]) else b"none"
    if found != str(rendezvous.epoch).encode():
        raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} is over (epoch {found.decode()} there)")
    return PrefixStore(f"{scope}/{rendezvous.epoch}", store)


def _connect(rendezvous: Rendezvous, deadline: float) -> Any:
    """Connect in short attempts: torch's client retries a closed store until the timeout."""
    from torch.distributed import DistError, TCPStore

    where = (rendezvous.host, rendezvous.port)
    while True:
        left_s = deadline - time.monotonic()
        _check_listening(rendezvous, max(left_s, MIN_TIMEOUT_S))
        timeout = timedelta(seconds=max(min(left_s, CONNECT_TIMEOUT_S), MIN_TIMEOUT_S))
        try:
            return TCPStore(*where, is_master=False, wait_for_workers=False, timeout=timeout)
        except DistError as error:
            if time.monotonic() >= deadline:
                raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} does not answer: {error}") from error


def _check_listening(rendezvous: Rendezvous, timeout_s: float) -> None:
    """Raise `RecoveryFailed` unless the store accepts connections: a closed store refuses at once."""
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), timeout=timeout_s).close()
    except OSError as error:
        raise RecoveryFailed(f"the rendezvous of epoch {rendezvous.epoch} is gone: {error}") from None
