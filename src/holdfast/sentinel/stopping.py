"""Stops an engine core and its ranks after a fault, so that nobody waits in a collective for who will not come."""

from __future__ import annotations

import time
from collections.abc import Callable

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.ports import EngineHost
from holdfast.core.protocol import messages as m
from holdfast.sentinel.containment import Containment
from holdfast.sentinel.rank_registry import RankRegistry

Tell = Callable[[set[int], bytes], None]
Report = Callable[[m.EngineFaulted], None]


class Stopping:
    """Of one engine core. The busy loop's thread and the sentinel's.

    Args:
        tell: sends an order to ranks. Any thread.
        report: tells the client of a rank's fault. The sentinel's thread.
    """

    def __init__(
        self, engine_id: int, containment: Containment, attendance: RankRegistry, tell: Tell, report: Report
    ) -> None:
        self._engine_id = engine_id
        self._containment = containment
        self._rank_registry = attendance
        self._tell = tell
        self._report = report
        self.host: EngineHost | None = None  # none until everything is there

    def has_peers(self) -> bool:
        """Whether anybody waits for a rank of this engine core in a collective."""
        return len(self._rank_registry.ranks()) > 1 or (self.host is not None and self.host.in_lockstep)

    def leaves_peers_waiting(self, fault: Fault) -> bool:
        """Whether peers would wait for this engine core, or for its lost rank, until their time is over."""
        lost = fault.fault_class is FaultClass.WORKER_LOST and self.has_peers()
        return lost or (self.host is not None and self.host.in_lockstep)

    def break_collectives(self, epoch: int) -> None:
        """Let nobody wait in a collective of `epoch` with this engine core or its ranks; they take no further step.

        A recovery may begin meanwhile: its collectives are left alone.
        """
        ranks = self._containment.order_break(epoch, self._rank_registry.ranks(), time.monotonic())
        if self.host is not None:
            self._containment.during(epoch, self.host.break_collectives)
        self._tell(ranks, m.encode(m.BreakCollectives(epoch=epoch)))

    def interrupt(self, epoch: int) -> None:
        """End the busy loop, unless a recovery has begun: it has taken back every interrupt before it."""
        if self.host is not None:
            self._containment.during(epoch, self.host.interrupt)

    def rank_faulted(self, report: m.RankFaulted) -> None:
        """A rank's own account, or what was found out about one that tells nothing. The sentinel's thread."""
        if not self._containment.rank_faulted(report.rank, report.fault, report.epoch):
            return
        self._report(m.EngineFaulted(engine_id=self._engine_id, epoch=report.epoch, fault=report.fault))
        if self.has_peers():  # only the output rank's failures reach the busy loop, and an idle one notices nothing
            self.break_collectives(report.epoch)
            self.interrupt(report.epoch)

    def pause(self, order: m.PauseEngine) -> None:
        """Somebody wants it to stand still; a soft pause leaves the ranks in their step."""
        if order.epoch != self._containment.epoch:
            return
        if not order.soft and self.has_peers():
            self.break_collectives(order.epoch)
        self.interrupt(order.epoch)
