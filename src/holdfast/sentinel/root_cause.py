"""What an exception that ended the busy loop stands for: a rank's own account of it, or the exception itself."""

from __future__ import annotations

import time

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.classification import Classifier, fault_of
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.ports import EngineHost
from holdfast.sentinel.containment import Containment

# How long a fault that surfaced as a worker's reply waits for that worker's own, fuller account.
REPORT_WAIT_S = 2.0
_WORKER_GONE = "the process of a worker is gone"


class RootCause:
    """Of one engine core. The busy loop's thread."""

    def __init__(self, engine_id: int, config: HoldfastConfig, containment: Containment) -> None:
        self._engine_id = engine_id
        self._classifier = Classifier(config.fault_classes)
        self._containment = containment

    def root_cause(self, error: Exception, host: EngineHost) -> Fault | None:
        """The rank's own account where there is one: replies carry only a text of it, or hide it.

        None where nothing is wrong here: the busy loop was only told to stand still.
        """
        was_told = host.is_interrupt(error)
        if host.is_workers_reply(error) and not was_told:
            self._containment.wait_for_rank_fault(REPORT_WAIT_S)
        if self._containment.fault is not None:
            return self._containment.fault
        return None if was_told else self.own_fault(error, host)

    def own_fault(self, error: Exception, host: EngineHost) -> Fault:
        """The exception as it is; whatever it says, a worker that is gone says more."""
        fault = fault_of(
            error,
            self._classifier,
            engine_id=self._engine_id,
            rank=getattr(error, "rank", None),
            phase=getattr(error, "phase", None),
            at=time.time(),
        )
        if host.lost_a_worker():
            return msgspec.structs.replace(fault, fault_class=FaultClass.WORKER_LOST, class_reason=_WORKER_GONE)
        return fault
