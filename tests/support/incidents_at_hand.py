"""Incidents as a decision finds them, and the settings that it is made under."""

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.core.policy.ladder import Incident

AUTO = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_engine_restarts=0)
NO_RESTARTS = HoldfastConfig(max_retries=3, retry_window_s=60.0, max_worker_restarts=0, max_engine_restarts=0)
EXTERNAL = HoldfastConfig(fault_policy="external", engine_recovery_timeout_s=120.0)


OF_THE_PROCESS = [
    (FaultClass.DEVICE, "the device error is sticky"),
    (FaultClass.WORKER_LOST, "a worker process is gone"),
    (FaultClass.UNRESPONSIVE, "a rank did not answer in time"),
]


def fault(fault_class=FaultClass.TRANSIENT, rank=0):
    return Fault(fault_class=fault_class, error_type="RuntimeError", message="boom", engine_id=1, rank=rank)


def incident(*times, retried_at=(), fault_class=FaultClass.TRANSIENT, began_at=0.0, rank=0, **about):
    return Incident(fault=fault(fault_class, rank), began_at=began_at, retried_at=times or retried_at, **about)


def sick(fault_class=FaultClass.WORKER_LOST, **about):
    return incident(fault_class=fault_class, wants_restart=True, **about)


def nothing_wrong(**about):
    return Incident(fault=None, began_at=0.0, **about)
