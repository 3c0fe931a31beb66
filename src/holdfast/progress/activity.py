"""Activity of a process between two looks: starved of processors, or computing, also through children."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.progress.processes import ProcessLook, ThreadTimes, descendants, thread_times

COMPUTING_SHARE = 0.5


@dataclass(frozen=True)
class Doing:
    """Activity since the last look.

    `starved_s`: time for which the thread that waited longest for a processor was ready to run and got none.
    `is_computing`: most of the time some thread had a processor or was ready for one.
    """

    starved_s: float = 0.0
    is_computing: bool = False


class Activity:
    """Activity of a process, optionally with all descendants. A closer look reads every thread."""

    def __init__(self, pid: int, *, with_children: bool) -> None:
        self._pid = pid
        self._with_children = with_children
        self._cpu_s = 0.0
        self._threads: Mapping[int, ThreadTimes] = {}  # at the last look, if closer

    def look(self, process: ProcessLook, elapsed_s: float, *, closer: bool) -> Doing:
        """Return the activity in the `elapsed_s` since the last look; empty unless both looks are closer looks."""
        got_s, self._cpu_s = process.cpu_s - self._cpu_s, process.cpu_s
        before, self._threads = self._threads, self._all_threads() if closer else {}
        if not closer:
            return Doing()
        if not self._threads:  # not counted by the system: use the processor time of the whole process
            starved_s = elapsed_s - got_s if process.state == "R" and got_s < elapsed_s / 2 else 0.0
            return Doing(starved_s, got_s >= COMPUTING_SHARE * elapsed_s)
        both = [(before[thread], times) for thread, times in self._threads.items() if thread in before]
        waited_s = max((now.waited_s - was.waited_s for was, now in both), default=0.0)
        ready_s = max((now.ready_s - was.ready_s for was, now in both), default=0.0)
        return Doing(min(elapsed_s, waited_s), ready_s >= COMPUTING_SHARE * elapsed_s)

    def _all_threads(self) -> dict[int, ThreadTimes]:
        pids = (self._pid, *(descendants(self._pid) if self._with_children else ()))
        return {thread: times for pid in pids for thread, times in thread_times(pid).items()}
