"""The WorkerSentinel on its own thread, over the in-memory wire."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import messages as m
from holdfast.sentinel import WorkerSentinel
from holdfast.sentinel.thread import worker_identity
from holdfast.wire import MemoryNetwork

WAIT_S = 10.0
CAUSE = Fault(fault_class=FaultClass.TRANSIENT, error_type="ValueError", message="the root cause", engine_id=0, rank=0)


class FaultingHost:
    """A worker whose main thread reports a fault while the sentinel waits to break the collectives."""

    sentinel: WorkerSentinel

    def arm(self, spec: InjectionSpec) -> None: ...

    def break_collectives(self, epoch: int) -> int:
        self.sentinel.report(CAUSE, epoch)  # the main thread held the fence's lock, and has let it go
        return 0

    def collective_under_way(self, epoch: int) -> str | None:
        return None


@pytest.fixture
def host() -> FaultingHost:
    return FaultingHost()


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def sentinel(network: MemoryNetwork, host: FaultingHost) -> Iterator[WorkerSentinel]:
    made = WorkerSentinel(host, 0, network.station(), "engine-0")
    host.sentinel = made
    yield made
    made.close()


def test_an_acknowledgement_never_overtakes_the_report_of_the_root_cause(
    network: MemoryNetwork, sentinel: WorkerSentinel
) -> None:
    """Once every rank has acknowledged, the engine core looks at the cause: a report that comes later is missed."""
    engine_core = network.station()
    hub = engine_core.bind("engine-0")
    sentinel.start(())
    received: list[m.FromWorker] = []
    deadline = time.monotonic() + WAIT_S
    while len(received) < 3 and time.monotonic() < deadline:
        delivery = engine_core.receive(0.1)
        if delivery is None:
            continue
        received.append(m.decode_from_worker(delivery.data))
        if isinstance(received[-1], m.WorkerAttached):
            hub.send(worker_identity(0), m.encode(m.BreakCollectives(epoch=0)))
    assert [type(message) for message in received] == [m.WorkerAttached, m.RankFaulted, m.CollectivesBroken]
