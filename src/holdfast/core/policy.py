"""What to do about a fault: pure functions `(now, snapshot, config) -> (action, reason)`."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults import Fault, FaultClass


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests, rebuild broken collectives, go on
    AWAIT = "await-instruction"  # stay paused; somebody outside decides
    END = "end-instance"  # nothing left that can help


class Decision(msgspec.Struct, frozen=True):
    """What to do and why; the reason is shown to people."""

    action: Action
    reason: str


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """What the decision depends on: the fault, when it began, and the retries before it (seconds).

    `fault` is none where somebody only asked for a pause; `broken` says that collectives have to be
    rebuilt, `unrebuildable` what that could not bring back.
    """

    fault: Fault | None
    began_at: float
    retried_at: tuple[float, ...] = ()
    broken: bool = False
    unrebuildable: tuple[str, ...] = ()
    paused_by_hand: bool = False


def recent(retried_at: Sequence[float], now: float, window_s: float) -> tuple[float, ...]:
    """The retries that lie within the window that ends now."""
    return tuple(at for at in retried_at if now - at < window_s)


def decide_repair(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """The repair for a lockstep group that stands held."""
    if unrepairable := _beyond_retry(incident):
        return Decision(Action.END, unrepairable)
    if incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    if config.fault_policy == "external" and incident.fault is not None:
        return decide_wait(now, incident, config)
    retries = len(recent(incident.retried_at, now, config.retry_window_s))
    if retries >= config.max_retries:
        return Decision(
            Action.END,
            f"{retries} retries within {config.retry_window_s:g} s did not last "
            f"(--max-retries {config.max_retries}); last fault: {_summary(incident)}",
        )
    repair = "its collectives are rebuilt; " if incident.broken else ""
    cause = "exception with state intact" if incident.fault else "it stands still and nothing is wrong"
    return Decision(Action.RETRY, f"{cause}; {repair}retry {retries + 1} of {config.max_retries}")


def decide_wait(now: float, incident: Incident, config: HoldfastConfig) -> Decision:
    """Whether to go on waiting for an instruction from outside."""
    if incident.fault is None or incident.paused_by_hand:
        return Decision(Action.AWAIT, "paused by hand; goes on when told to resume")
    waited_s = now - incident.began_at
    if waited_s >= config.engine_recovery_timeout_s:
        return Decision(
            Action.END,
            f"no instruction repaired it within {config.engine_recovery_timeout_s:g} s "
            f"(--engine-recovery-timeout); fault: {incident.fault.summary()}",
        )
    left_s = config.engine_recovery_timeout_s - waited_s
    return Decision(Action.AWAIT, f"waiting up to {left_s:.0f} s for an instruction")


def _summary(incident: Incident) -> str:
    return "none" if incident.fault is None else incident.fault.summary()


_WHY_NOT = {
    FaultClass.DEVICE: "the device error is sticky and the worker cannot go on",
    FaultClass.WORKER_LOST: "a worker process is gone",
    FaultClass.UNRESPONSIVE: "a rank did not answer in time",
}


def _beyond_retry(incident: Incident) -> str | None:
    fault = incident.fault
    if fault is not None and fault.fault_class in _WHY_NOT:
        return f"{_WHY_NOT[fault.fault_class]}, and restarting workers is not part of this version; {fault.summary()}"
    if incident.broken and incident.unrebuildable:
        what = "; ".join(dict.fromkeys(incident.unrebuildable))
        return (
            f"broken collectives cannot be rebuilt in place here ({what}), "
            f"and restarting workers is not part of this version; fault: {_summary(incident)}"
        )
    return None
