"""What to do about a fault: pure functions `(now, snapshot, config) -> (action, reason)`."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults import Fault, FaultClass


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests and go on
    AWAIT = "await-instruction"  # stay paused; somebody outside decides
    END = "end-instance"  # nothing left that can help


class Decision(msgspec.Struct, frozen=True):
    """What to do and why; the reason is shown to people."""

    action: Action
    reason: str


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision depends on: the fault, when it began, and the retries before it (seconds)."""

    fault: Fault
    began_at: float
    retried_at: tuple[float, ...] = ()


def recent(retried_at: Sequence[float], now: float, window_s: float) -> tuple[float, ...]:
    """The retries that lie within the window that ends now."""
    return tuple(at for at in retried_at if now - at < window_s)


def decide_repair(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """The repair for an engine that stands held after a fault."""
    if unrepairable := _beyond_retry(incident.fault):
        return Decision(Action.END, unrepairable)
    if config.fault_policy == "external":
        return decide_wait(now, incident, config)
    retries = len(recent(incident.retried_at, now, config.retry_window_s))
    if retries >= config.max_retries:
        return Decision(
            Action.END,
            f"{retries} retries within {config.retry_window_s:g} s did not last "
            f"(--max-retries {config.max_retries}); last fault: {incident.fault.summary()}",
        )
    return Decision(Action.RETRY, f"exception with state intact; retry {retries + 1} of {config.max_retries}")


def decide_wait(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """Whether to go on waiting for an instruction from outside."""
    waited_s = now - incident.began_at
    if waited_s >= config.engine_recovery_timeout_s:
        return Decision(
            Action.END,
            f"no instruction repaired it within {config.engine_recovery_timeout_s:g} s "
            f"(--engine-recovery-timeout); fault: {incident.fault.summary()}",
        )
    left_s = config.engine_recovery_timeout_s - waited_s
    return Decision(Action.AWAIT, f"waiting up to {left_s:.0f} s for an instruction")


def _beyond_retry(fault: Fault) -> str | None:
    if fault.fault_class is FaultClass.TRANSIENT:
        return None
    why = {
        FaultClass.DEVICE: "the device error is sticky and the worker cannot go on",
        FaultClass.WORKER_LOST: "a worker process is gone",
        FaultClass.UNRESPONSIVE: "a rank did not answer in time",
    }[fault.fault_class]
    return f"{why}, and restarting workers is not part of this version; {fault.summary()}"
