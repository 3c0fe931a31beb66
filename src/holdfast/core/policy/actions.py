"""What may be done about a fault, and how tries are counted. Pure data and small functions of it."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

LONGEST_PAUSE_S = 30.0  # between tries to start a process again


class Action(enum.StrEnum):
    RETRY = "retry"  # rung 1: rewind the requests, rebuild broken collectives, go on
    RESTART_WORKERS = "restart-workers"  # rung 2: the same, after the sick ranks got a new process
    RESTART_ENGINE = "restart-engine"  # rung 3: another process in the place of the engine core, and of its workers
    LEAVE_OUT = "leave-out"  # rung 4: nobody takes its place, the other engine cores serve on
    AWAIT = "await-instruction"  # stay paused; somebody outside decides, or time
    END = "end-instance"  # nothing left that can help

    @property
    def rung(self) -> int:
        """Of the ladder; 0 where nothing is done."""
        return _RUNGS[self]


_RUNGS = {
    Action.AWAIT: 0,
    Action.RETRY: 1,
    Action.RESTART_WORKERS: 2,
    Action.RESTART_ENGINE: 3,
    Action.LEAVE_OUT: 4,
    Action.END: 5,
}


class Decision(msgspec.Struct, frozen=True):
    """What to do and why; the reason is shown to people.

    `retry_at`: decide anew then (seconds). `after_s`: the pause before another engine core is started. `tries`: how
    often this rung was taken within its window, this time included, of `limit`. `would`: what a dry run leaves undone.
    """

    action: Action
    reason: str
    retry_at: float | None = None
    after_s: float = 0.0
    tries: int = 0
    limit: int = 0
    would: Action | None = None


@dataclass(frozen=True)
class Replacement:
    """Whether an engine core is replaced, why, and after which pause.

    `kill`: the old process is still there; `asked`: the command that wants it.
    """

    is_possible: bool
    reason: str
    after_s: float = 0.0
    kill: bool = False
    asked: str | None = None
    tries: int = 0
    limit: int = 0


def recent(tried_at: Sequence[float], now: float, window_s: float, opened_at: float | None = None) -> tuple[float, ...]:
    """The tries that lie within the window that ends now, and all of an incident that is open since `opened_at`.

    Were those forgiven too, tries that take longer than the window would go on for ever.
    """
    since = math.inf if opened_at is None else opened_at
    return tuple(at for at in tried_at if now - at < window_s or at >= since)


def growing_pause_s(tries: int) -> float:
    """How long to wait before the next try of what was tried so often: not at all at first, then 1 s and more."""
    return min(LONGEST_PAUSE_S, 2.0 ** (tries - 1)) if tries else 0.0
