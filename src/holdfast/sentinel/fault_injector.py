"""Faults that are armed in an engine core and its ranks, for tests.

What is tied to a request is armed in every process that takes a rank's place too, as that request is there as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.ports import EngineHost
from holdfast.core.protocol import messages as m

MAX_KEPT = 16


class FaultInjector:
    """The sentinel's thread. `tell` sends to a rank and says whether it took it."""

    def __init__(self, engine_id: int, tell: Callable[[int, bytes], bool]) -> None:
        self._engine_id = engine_id
        self._tell = tell
        self._kept: deque[m.ArmWorkerFault] = deque(maxlen=MAX_KEPT)

    def arm(self, command_id: str, spec: InjectionSpec, host: EngineHost | None, ranks: Collection[int]) -> str | None:
        """Arm a fault, or pass it on to its rank, which answers itself. Returns why not; empty where that is all."""
        if host is None:
            return "the engine core is still starting"
        if not spec.phase.in_worker:
            host.arm(spec)
            return ""
        if spec.rank not in ranks:
            return f"engine {self._engine_id} has no rank {spec.rank}"
        order = m.ArmWorkerFault(command_id=command_id, spec=spec)
        if not self._tell(spec.rank, m.encode(order)):
            return f"rank {spec.rank} takes no commands"
        if spec.request:
            self._kept.append(order)
        return None

    def arm_again(self, rank: int) -> None:
        """Another process has taken a rank's place."""
        for order in self._kept:
            if order.spec.rank == rank:
                self._tell(rank, m.encode(order))
