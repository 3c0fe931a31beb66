"""Faults on servers of many ranks, compared token by token with a fault-free run."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.bench.topologies import Topology
from holdfast.chaos.control import FAULT, Control
from holdfast.chaos.history import History
from holdfast.chaos.loads import every_feature, fresh_salt
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.servers import Asks, Kind, Servers, run
from integration.helpers.streams import assert_exact


@dataclass(frozen=True)
class Bench:
    """The server of a topology and its fault-free run."""

    servers: Servers
    topology: Topology
    kind: Kind
    asks: Asks = every_feature

    def assert_exact_through(self, *injections: InjectionSpec) -> list[dict]:
        """Run a load through faults, then again into the prefix cache that the faults left; return the events."""
        expected, salt = self.servers.reference(self.topology, self.kind, self.asks), fresh_salt()
        server = self.servers.shared_of(self.topology, self.kind)
        found, events = run(self._through(server, salt, injections))
        assert_exact(expected, found)
        assert_exact(expected, run(Load(server.url, self.asks(salt)).run()))
        return events

    async def _through(
        self, server: Server, salt: str, injections: tuple[InjectionSpec, ...]
    ) -> tuple[list[History], list[dict]]:
        async with Control(server.url) as control:
            before = await control.last_sequence()
            for injection in injections:
                await control.inject(injection)
            histories = await Load(server.url, self.asks(salt)).run()
            events = await control.wait_recovered(before, faults=1)
            assert await control.unwell() is None
        return histories, events


def injected(events: list[dict]) -> list[dict]:
    """Return the faults that were reported with the injected cause."""
    return [e["fault"] for e in events if e["kind"] == FAULT and e["fault"]["error_type"] == "InjectedFault"]
