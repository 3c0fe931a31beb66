"""Events of an incident as a server tells them, on the monotonic clock of this process."""

from __future__ import annotations

import time
from typing import Any

Event = dict[str, Any]

_EPOCH_S = time.time() - time.monotonic()  # once: the two clocks are not read at the same instant

_STATES = {
    "engine-attached": "healthy",
    "fault-armed": "healthy",
    "fault-reported": "faulted",
    "decision-made": "faulted",
    "pause-ordered": "pausing",
    "engine-paused": "paused",
    "recovery-started": "recovering",
    "engine-recovered": "healthy",
    "engine-lost": "restarting",
    "engine-restarted": "healthy",
    "standbys-changed": "healthy",
    "request-ended": "healthy",
}


def event(kind: str, at_s: float, engine_id: int = 0, **more: Any) -> Event:
    return {"kind": kind, "at": _wall(at_s), "engine_id": engine_id, "state": _STATES[kind], **more}


def fault(at_s: float, engine_id: int = 0, rank: int | None = 0, *, told_s: float | None = None, **more: Any) -> Event:
    """A report of a fault that was noticed at `at_s` and told at `told_s`."""
    told = {"engine_id": engine_id, "rank": rank, "phase": "forward", "fault_class": "transient", "at": _wall(at_s)}
    told |= {"error_type": "InjectedFault", "message": "injected fault"}
    return event("fault-reported", at_s if told_s is None else told_s, engine_id, fault={**told, **more})


def incident(fault_s: float, recovered_s: float, engine_id: int = 0) -> list[Event]:
    """One engine's fault and its recovery."""
    return [fault(fault_s, engine_id), event("engine-recovered", recovered_s, engine_id)]


def loss(lost_s: float, restarted_s: float, engine_id: int = 0) -> list[Event]:
    """One engine core's death, and another process in its place; alone in its lockstep group."""
    back = [event("engine-attached", restarted_s, engine_id), event("engine-restarted", restarted_s, engine_id)]
    return [event("engine-lost", lost_s, engine_id), *back]


def _wall(monotonic_s: float) -> float:
    return _EPOCH_S + monotonic_s
