"""Reasons for the repair of each class of faults, in words for people. Decides nothing."""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, FaultClass

WHY_RESTART = {
    FaultClass.DEVICE: "the device error is sticky and the worker cannot continue",
    FaultClass.WORKER_LOST: "a worker process was lost",
    FaultClass.UNRESPONSIVE: "a rank did not answer in time",
}
_WHY_RETRY = {
    FaultClass.NUMERICAL: "non-finite logits (NaN or Inf); the KV of the step is suspect, repeating the step",
    FaultClass.UNKNOWN: "unclassified error; retrying once",
}
_FIRST_REPAIRS = {
    FaultClass.COMMUNICATOR: "retry: rebuild the broken collectives, rewind the requests, resume",
    FaultClass.TRANSIENT: "retry: rewind the requests, resume",
    FaultClass.NUMERICAL: "retry: drop what the step wrote, repeat the step",
    FaultClass.UNKNOWN: "retry once; at the next within the retry window a new process for the rank",
}


def why_retry(fault: Fault | None) -> str:
    """Return why a group is retried with the present processes."""
    if fault is None:
        return "paused without a fault"
    return _WHY_RETRY.get(fault.fault_class, "exception with state intact")


def why_restart(fault: Fault | None) -> str:
    """Return why a rank gets a new process."""
    if fault is None or fault.fault_class not in WHY_RESTART:
        return "the process of a rank cannot be trusted any more"
    return f"{WHY_RESTART[fault.fault_class]}: {fault.summary()}"


def first_repair(fault_class: FaultClass) -> str:
    """Return the first repair of a fault of a class, for a fault of a known rank."""
    return _FIRST_REPAIRS.get(fault_class, "restart worker: a new process for the rank")
