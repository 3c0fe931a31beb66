"""Situations in which decisions are made, and settings."""

from dataclasses import replace

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.policy.incident import NOT_OPEN, Budget, Capacity, GroupBudgets, Incident, Situation

AUTO = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_engine_restarts=0)
NO_RESTARTS = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_worker_restarts=0, max_engine_restarts=0)
EXTERNAL = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=120.0)


OF_THE_PROCESS = [
    (FaultClass.DEVICE, "the device error is sticky"),
    (FaultClass.WORKER_LOST, "a worker process was lost"),
    (FaultClass.UNRESPONSIVE, "a rank did not answer in time"),
]


def fault(fault_class=FaultClass.TRANSIENT, rank=0):
    return Fault(fault_class=fault_class, error_type="RuntimeError", message="boom", engine_id=1, rank=rank)


def incident(*times, retried_at=(), fault_class=FaultClass.TRANSIENT, rank=0, **about):
    return situation(fault=fault(fault_class, rank), retried_at=times or retried_at, **about)


def sick(fault_class=FaultClass.WORKER_LOST, **about):
    return incident(fault_class=fault_class, needs_worker_restart=True, **about)


def nothing_wrong(**about):
    return situation(fault=None, **about)


def situation(*, retried_at=(), unknown_retried_at=(), restarted_at=(), engine_restarted_at=(), **about):
    """Return a situation. Names that are no field of `Situation` describe the incident or the budgets."""
    budgets = GroupBudgets(
        retries=Budget(retried_at),
        unknown_retries=Budget(unknown_retried_at),
        worker_restarts=Budget(restarted_at),
        named_requests=about.pop("named_requests", ()),
    )
    own = {"engine_restarts": Budget(engine_restarted_at), "capacity": Capacity()}
    own |= {name: about.pop(name) for name in tuple(about) if name in Situation.__dataclass_fields__}
    times = {"opened_at": NOT_OPEN, "waiting_since": 0.0}
    return Situation(incident=Incident(**times | about), budgets=budgets, **own)


def opened(found, at):
    """Return the same situation with another opening time of the incident."""
    return replace(found, incident=replace(found.incident, opened_at=at))
