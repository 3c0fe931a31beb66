"""The wire's in-memory twin, for tests and simulation: the same port, no sockets."""

from __future__ import annotations

import threading
from collections import deque

from holdfast.core.errors import PortInUse
from holdfast.wire.base import MAX_FRAME_BYTES, MAX_QUEUED_MESSAGES, Delivery


class MemoryNetwork:
    """Addresses shared by a set of stations; create a network per test."""

    def __init__(self) -> None:
        self._hubs: dict[str, MemoryHub] = {}

    def station(self) -> MemoryStation:
        return MemoryStation(self)

    def add(self, hub: MemoryHub) -> None:
        if hub.address in self._hubs:
            raise PortInUse(f"cannot bind {hub.address}: Address already in use")
        self._hubs[hub.address] = hub

    def remove(self, hub: MemoryHub) -> None:
        if self._hubs.get(hub.address) is hub:
            del self._hubs[hub.address]

    def hub(self, address: str) -> MemoryHub | None:
        return self._hubs.get(address)


class MemoryHub:
    def __init__(self, station: MemoryStation, address: str) -> None:
        self.address = address
        self.station = station
        self.peers: dict[bytes, MemorySpoke] = {}

    def send(self, peer: bytes, data: bytes) -> bool:
        spoke = self.peers.get(peer)
        return spoke is not None and spoke.station.deliver(Delivery(spoke, b"", data))


class MemorySpoke:
    def __init__(self, station: MemoryStation, network: MemoryNetwork, address: str, identity: bytes) -> None:
        self.station = station
        self._network = network
        self._address = address
        self._identity = identity

    def send(self, data: bytes) -> bool:
        hub = self._network.hub(self._address)
        if hub is None:
            return False
        hub.peers[self._identity] = self
        return hub.station.deliver(Delivery(hub, self._identity, data))


class MemoryStation:
    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._inbox: deque[Delivery] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._closed = False
        self._hubs: list[MemoryHub] = []

    def bind(self, address: str) -> MemoryHub:
        hub = MemoryHub(self, address)
        self._network.add(hub)
        self._hubs.append(hub)
        return hub

    def connect(self, address: str, identity: bytes) -> MemorySpoke:
        return MemorySpoke(self, self._network, address, identity)

    def receive(self, timeout_s: float) -> Delivery | None:
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._woken, timeout_s)
            self._woken = False
            return self._inbox.popleft() if self._inbox else None

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        self._closed = True
        for hub in self._hubs:
            self._network.remove(hub)

    def deliver(self, delivery: Delivery) -> bool:
        with self._changed:
            refused = self._closed or len(self._inbox) >= MAX_QUEUED_MESSAGES
            if refused or len(delivery.data) > MAX_FRAME_BYTES:
                return False
            self._inbox.append(delivery)
            self._changed.notify()
            return True
