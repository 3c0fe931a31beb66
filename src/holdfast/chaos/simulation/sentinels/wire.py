"""The wire of a simulated instance: the port of the wire, over a link that loses, repeats, delays and reorders."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from holdfast.chaos.simulation.sentinels.scheduler import Process, Scheduler
from holdfast.wire import Delivery

LATEST, REPEATED_AT_THE_END, LATE_S = 3, 0.3, 2.5  # messages of a process that ends; the odds; how late at most
REPEATED_LATER = 10  # times as late as a message comes a repeated one, often of a process that has ended


@dataclass(frozen=True)
class Weather:
    """Treatment of messages. Odds are per message; every message has a delay of its own, so messages overtake."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.001


class VirtualNetwork:
    """Addresses of all stations of a run. `is_lost(data)` exempts messages that a transport would not lose."""

    def __init__(self, scheduler: Scheduler, weather: Weather, dice: random.Random) -> None:
        self.scheduler, self.weather, self._dice = scheduler, weather, dice
        self.hubs: dict[str, VirtualHub] = {}
        self.muted_until = 0.0
        self.lost = self.carried = 0
        self.note: Callable[[str], None] = lambda text: None
        self.is_exempt: Callable[[bytes], bool] = lambda data: False

    def draw(self) -> float:
        return self._dice.random()

    def station(self) -> VirtualStation:
        return VirtualStation(self, self.scheduler.running)

    def carry(self, data: bytes, arrive: Callable[[], None]) -> None:
        """Carry a message over the link."""
        self.carried += 1
        dice, weather = self._dice, self.weather
        is_lost, copies = dice.random() < weather.loss, 1 + (dice.random() < weather.duplication)
        delays = [dice.random() * weather.delay_s, dice.random() * weather.delay_s * REPEATED_LATER]
        if (is_lost or self.scheduler.now < self.muted_until) and not self.is_exempt(data):
            self.lost += 1
            self.note(f"lost: {data[:60]!r}")
            return
        for delay_s in delays[:copies]:
            self.scheduler.after(0.0002 + delay_s, arrive)


class VirtualHub:
    def __init__(self, station: VirtualStation, address: str) -> None:
        self.address, self.station = address, station
        self.peers: dict[bytes, VirtualSpoke] = {}

    def send(self, peer: bytes, data: bytes) -> bool:
        spoke = self.peers.get(peer)
        if spoke is None or spoke.station.process.is_gone:
            return False
        self.station.network.carry(data, lambda: spoke.station.arrived(Delivery(spoke, b"", data)))
        return True


class VirtualSpoke:
    def __init__(self, station: VirtualStation, address: str, identity: bytes) -> None:
        self.station, self._address, self._identity = station, address, identity
        self._latest: deque[bytes] = deque(maxlen=LATEST)
        station.process.on_end.append(self._repeat_late)

    def _repeat_late(self) -> None:
        """Let the latest messages of a process that has ended arrive again, when another process may have begun."""
        network = self.station.network
        for data in self._latest if network.draw() < REPEATED_AT_THE_END else ():
            network.scheduler.after(LATE_S * network.draw(), lambda data=data: self._arrive(data))  # type: ignore[misc]

    def send(self, data: bytes) -> bool:
        network = self.station.network
        self._latest.append(data)
        network.carry(data, lambda: self._arrive(data))
        return True

    def _arrive(self, data: bytes) -> None:
        hub = self.station.network.hubs.get(self._address)
        if hub is not None:
            if not self.station.process.is_gone:
                hub.peers[self._identity] = self  # as ROUTER_HANDOVER does
            hub.station.arrived(Delivery(hub, self._identity, data))


class VirtualStation:
    """Implements `Station` for a virtual process."""

    def __init__(self, network: VirtualNetwork, process: Process) -> None:
        self.network, self.process = network, process
        self._inbox: deque[Delivery] = deque()
        self.on_arrival: Callable[[], None] = lambda: None

    def bind(self, address: str) -> VirtualHub:
        hub = self.network.hubs[address] = VirtualHub(self, address)
        return hub

    def connect(self, address: str, identity: bytes) -> VirtualSpoke:
        return VirtualSpoke(self, address, identity)

    def arrived(self, delivery: Delivery) -> None:
        if not self.process.is_gone:
            self._inbox.append(delivery)
            self.on_arrival()

    def receive(self, timeout_s: float) -> Delivery | None:
        return self._inbox.popleft() if self._inbox else None

    def wake(self) -> None:
        self.on_arrival()

    def close(self) -> None:
        pass
