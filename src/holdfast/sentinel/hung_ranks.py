"""Ranks that tell nothing themselves: a process that is gone, and one that is taken for hung, which is killed.

The sentinel's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.classification import Classifier
from holdfast.core.faults.faults import Fault, hung
from holdfast.core.protocol import messages as m
from holdfast.core.stalls.stalls import Stall
from holdfast.sentinel.containment import Containment
from holdfast.sentinel.incident_files import IncidentFiles
from holdfast.sentinel.rank_registry import RankRegistry
from holdfast.sentinel.stopping import Stopping

logger = logging.getLogger("holdfast")


class HungRanks:
    """Speaks for the ranks of one engine core that do not; an `Accuser` for the watch of their progress."""

    def __init__(
        self,
        engine_id: int,
        config: HoldfastConfig,
        stopping: Stopping,
        containment: Containment,
        attendance: RankRegistry,
    ) -> None:
        self._engine_id = engine_id
        self._config = config
        self._stopping = stopping
        self._containment = containment
        self._rank_registry = attendance
        self._classifier = Classifier(config.fault_classes)
        self._killed: set[tuple[int, int]] = set()  # epoch and rank of those that were taken for hung
        self.incidents = IncidentFiles(config.incident_dir, config.runtime_dir, engine_id)

    def declare_overdue(self) -> None:
        """A rank that does not even say that it has stopped is taken for hung."""
        for rank in sorted(self._containment.overdue(time.monotonic())):
            why = f"did not acknowledge within {self._config.acknowledge_timeout_s:g} s that it stopped"
            self._kill(hung(self._engine_id, rank, f"{why}; it is taken for hung", time.time()), rank)

    def note_stuck_rank(self, report: m.RankStuck) -> None:
        if self._rank_registry.pids().get(report.rank) == report.pid:
            why = f"did not leave {report.collective}, which was broken; it never will"
            self._kill(hung(self._engine_id, report.rank, why, time.time()), report.rank)

    def _kill(self, fault: Fault, rank: int) -> None:
        """Whoever waits for it, also the busy loop for its reply, is told by its death."""
        epoch = self._containment.epoch
        self._stopping.rank_faulted(m.RankFaulted(rank=rank, epoch=epoch, fault=fault))
        self._killed.add((epoch, rank))
        if (host := self._stopping.host) is not None:
            host.kill_rank(rank)

    def note_lost(self, rank: int, how: str, exit_code: int | None) -> None:
        """The process of a rank is gone."""
        epoch = self._containment.epoch
        if (epoch, rank) in self._killed:  # why it was killed has been told, and says more than that it is dead
            self._killed.discard((epoch, rank))
        else:
            fault = self._loss(rank, how, exit_code)
            self._stopping.rank_faulted(m.RankFaulted(rank=rank, epoch=epoch, fault=fault))
        self._stopping.interrupt(epoch)  # also where it has no peers: nobody else would end the busy loop

    def _loss(self, rank: int, how: str, exit_code: int | None) -> Fault:
        verdict = self._classifier.of_exit(exit_code)
        return Fault(
            fault_class=verdict.fault_class,
            class_reason=verdict.reason,
            error_type="WorkerLost",
            message=f"the process of rank {rank} is gone: {how}",
            engine_id=self._engine_id,
            rank=rank,
            at=time.time(),
        )

    # ---- for the watch of the ranks' progress

    def rank_pids(self) -> Mapping[int, int]:
        return self._rank_registry.pids()

    def has_peers(self) -> bool:
        return self._stopping.has_peers()

    def may_declare_hung(self) -> bool:
        """Where collectives cannot be rebuilt an accusation would end the instance: the host's own bound decides."""
        host = self._stopping.host
        if host is None or not self.has_peers():
            return True
        return not host.unrebuildable() and self._rank_registry.can_rebuild()

    def break_to_find(self, until: float) -> None:
        self._containment.search(until)
        self._stopping.break_collectives(self._containment.epoch)

    def found(self) -> None:
        self._containment.search(0.0)

    def declare_hung(self, stall: Stall) -> None:
        call = stall.call
        phase, step = (call.phase, call.step) if call is not None else (None, None)
        fault = hung(self._engine_id, stall.rank, f"stalled: {stall.reason}", time.time(), phase=phase, step=step)
        logger.error("EngineCoreSentinel-%d: %s", self._engine_id, fault.message)
        self.incidents.keep(stall, self.rank_pids())
        self._kill(fault, stall.rank)
