"""The system's view of a process: state, and how long threads waited for a processor. Linux only."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

GONE, ZOMBIE = "X", "Z"
MAX_DESCENDANTS = 256


@dataclass(frozen=True)
class ProcessLook:
    """State of a process.

    `state` is the letter of proc(5): R runs or waits for a processor, S and D wait, T is stopped, t is traced, Z has
    ended. `exit_status` of a process in Z is encoded as by wait(2); 0 when the system does not tell.
    """

    state: str
    cpu_s: float = 0.0
    exit_status: int = 0


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def look_at(pid: int) -> ProcessLook:
    """Return state and processor time of a process; state X for a process that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ProcessLook(GONE)
    exit_status = int(fields[-1]) if fields[0] == ZOMBIE else 0
    return ProcessLook(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, exit_status)


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds since the start of a thread: running, and ready to run without a processor."""

    ran_s: float
    waited_s: float

    @property
    def ready_s(self) -> float:
        return self.ran_s + self.waited_s


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """Return the times of each thread of a process; empty when the system does not count them."""
    times: dict[int, ThreadTimes] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                ran, waited = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[:2]
                times[int(thread)] = ThreadTimes(int(ran) / 1e9, int(waited) / 1e9)
    return times


def descendants(pid: int) -> set[int]:
    """Return all processes started by a process, transitively (compilers, for instance); empty when unknown."""
    found: set[int] = set()
    to_ask = [pid]
    while to_ask and len(found) < MAX_DESCENDANTS:
        children = _children(to_ask.pop()) - found
        found |= children
        to_ask += children
    return found


def _children(pid: int) -> set[int]:
    children: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError):
                children |= set(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
    return children
