"""Actions that repair a fault, and the decision for an action. Pure data."""

from __future__ import annotations

import enum

import msgspec


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests, rebuild broken collectives, resume
    RESTART_WORKERS = "restart-workers"  # rung 2: the same, after the sick ranks got a new process
    RESTART_ENGINE = "restart-engine"  # rung 3: replace the engine core's process and its workers
    LEAVE_OUT = "leave-out"  # rung 4: replace nothing, the remaining engine cores serve on
    AWAIT = "await-instruction"  # stay paused until an operator decides, or until a timeout
    END = "end-instance"  # no repair is left
    RESTART_PROCESS = "restart-process"  # for a process beside the engine cores, which no rung is about

    @property
    def rung(self) -> int:
        """Return the rung of the ladder, 0 for an action that is on none."""
        return _RUNGS.get(self, 0)


_RUNGS = {
    Action.RETRY: 1,
    Action.RESTART_WORKERS: 2,
    Action.RESTART_ENGINE: 3,
    Action.LEAVE_OUT: 4,
    Action.END: 5,
}


class Decision(msgspec.Struct, frozen=True):
    """Action with the reason for people and the figures behind the decision.

    `retry_at`: when to decide again (seconds). `after_s`: the backoff before a process is started. `tries`: how often
    this rung was taken within its window, this time included, of `limit`. `would`: the action that a dry run omits.
    """

    action: Action
    reason: str
    retry_at: float | None = None
    after_s: float = 0.0
    tries: int = 0
    limit: int = 0
    would: Action | None = None
