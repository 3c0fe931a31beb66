"""Detection of processes that make no progress in a step for longer than such a step can take. Pure.

Processes are judged from outside: a rank that makes no progress in a step that never took so long has stalled,
whatever its threads answer. Every other explanation counts for the rank: starvation of processor time, work in the
kernel, a machine that slept, an observation that came late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from holdfast.core.stalls.step_deadlines import Deadline, Deadlines, Limits, Remembered
from holdfast.core.stalls.steps import Ended, Running


class Observation(msgspec.Struct, frozen=True):
    """State of a process at a moment.

    `starved_s`: seconds since the last observation in which the process was ready to run and did not run.
    `is_computing`: a thread or child had a processor for most of that time. `is_peer`: the process belongs to another
    engine core; own ranks may wait for a peer, and a peer is declared hung by its own engine core.
    """

    pid: int
    state: str
    running: tuple[Running, ...] = ()
    ended: tuple[Ended, ...] = ()
    starved_s: float = 0.0
    is_computing: bool = False
    is_peer: bool = False


class Stall(msgspec.Struct, frozen=True):
    """A process that makes no progress. `is_certain`: the process is stopped, and does not merely wait for a peer."""

    rank: int
    pid: int
    is_certain: bool
    reason: str
    call: Running | None = None
    age_s: float = 0.0
    deadline: Deadline | None = None


Call = tuple[int, int]  # a lane and a call of it


@dataclass
class _Known:
    """Knowledge about a process."""

    pid: int
    deadlines: Deadlines
    excused_s: dict[Call, float] = field(default_factory=dict)  # of its running calls
    at_work_s: dict[Call, float] = field(default_factory=dict)  # likewise
    unseen_s: dict[Call, float] = field(default_factory=dict)  # likewise: the machine slept, or somebody held them
    stopped_for_s: float | None = None


STOPPED, TRACED, IN_THE_KERNEL, DEAD = "T", "t", "D", frozenset("XZ")
AT_WORK_SHARE = 0.5
UNSEEN_SHARE = 0.5


class StallDetector:
    """Detector of stalls among processes that wait for each other: ranks of an engine core and lockstep peers.

    A rank that waits for a peer in a collective waits as long as the peer may take. Therefore every call has the
    longest deadline, and every excuse, of all calls that run.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[int, _Known] = {}
        self._remembered = Remembered()
        self._observed_at: float | None = None

    def relearn(self) -> None:
        """Take known durations for a hint only, because a recovery has let ranks back in."""
        for known in self._known.values():
            known.deadlines.forget()

    def watch_for(self, rank: int, pid: int) -> None:
        """Begin to learn durations of a process, unless the process is known."""
        if rank not in self._known or self._known[rank].pid != pid:
            self._leave(rank)
            self._known[rank] = _Known(pid, Deadlines(self._limits, self._remembered))

    def _leave(self, rank: int) -> None:
        """Remember the durations of a process that is gone: the replacement does the same work."""
        if (gone := self._known.pop(rank, None)) is not None:
            gone.deadlines.forget()

    def observe(self, now: float, due_s: float, observations: Mapping[int, Observation]) -> list[Stall]:
        """Return the stalls among the processes observed, `due_s` after the last observation when on time.

        A stopped process excuses all others.
        """
        elapsed_s = now - self._observed_at if self._observed_at is not None else due_s
        self._observed_at = now
        late_s = max(0.0, elapsed_s - due_s)
        late_s = late_s if late_s > self._limits.late_s else 0.0
        alive = {rank: seen for rank, seen in observations.items() if seen.state not in DEAD}
        traced = any(seen.state == TRACED for seen in alive.values())
        unseen_s = elapsed_s if traced else late_s
        starved_s = 0.0 if traced else max((seen.starved_s for seen in alive.values()), default=0.0)
        for rank, seen in alive.items():
            self._learn(rank, seen, unseen_s)
            self._take(rank, seen, unseen_s + starved_s, elapsed_s)
        for rank in self._known.keys() - alive.keys():
            self._leave(rank)
        stopped = [s for rank, seen in alive.items() if (s := self._stopped(rank, seen, elapsed_s - late_s))]
        some_stand = any(seen.state == STOPPED for seen in alive.values())  # and the others may wait for them
        return stopped if some_stand else self._overdue(now, alive)

    def _learn(self, rank: int, seen: Observation, unseen_s: float) -> None:
        """Learn durations of ended calls, except of calls during which the machine slept for most of the time."""
        self.watch_for(rank, seen.pid)
        known = self._known[rank]
        for ended in seen.ended:
            slept_s = known.unseen_s.get((ended.lane, ended.call), 0.0) + unseen_s
            if ended.lasted_s < self._limits.decode_floor_s or slept_s < UNSEEN_SHARE * ended.lasted_s:
                known.deadlines.learn(ended)
        running = [(call.lane, call.call) for call in seen.running]
        known.unseen_s = _grown(known.unseen_s, running, unseen_s)

    def _take(self, rank: int, seen: Observation, excuse_s: float, elapsed_s: float) -> None:
        known = self._known[rank]
        running = [(call.lane, call.call) for call in seen.running]
        known.excused_s = _grown(known.excused_s, running, excuse_s)
        known.at_work_s = _grown(known.at_work_s, running, elapsed_s if self._is_at_work(seen) else 0.0)

    def _is_at_work(self, seen: Observation) -> bool:
        """Return True when work may explain the duration: a wait for memory or disk, or a compilation."""
        return seen.state == IN_THE_KERNEL or (self._limits.may_compile and seen.is_computing)

    def _stopped(self, rank: int, seen: Observation, elapsed_s: float) -> Stall | None:
        known = self._known[rank]
        if seen.state != STOPPED or seen.is_peer:
            known.stopped_for_s = None
            return None
        known.stopped_for_s = 0.0 if known.stopped_for_s is None else known.stopped_for_s + elapsed_s
        if known.stopped_for_s < self._limits.stopped_s:
            return None
        call = seen.running[0] if seen.running else None
        reason = f"its process {seen.pid} is stopped (state T) for {known.stopped_for_s:.1f} s"
        return Stall(rank, seen.pid, True, reason, call)

    def _overdue(self, now: float, observations: Mapping[int, Observation]) -> list[Stall]:
        calls = [(rank, seen, call) for rank, seen in observations.items() for call in seen.running]
        if not calls:
            return []
        bounds = [self._deadline(now, rank, call) for rank, _, call in calls]
        longest = max(bounds, key=lambda bound: bound.seconds)
        excused_s = max(max(self._known[rank].excused_s.values()) for rank, _, _ in calls)
        late = [(r, seen, call) for r, seen, call in calls if now - call.began_at - excused_s >= longest.seconds]
        return [self._judged(r, seen, call, now - call.began_at, longest) for r, seen, call in late if not seen.is_peer]

    def _deadline(self, now: float, rank: int, call: Running) -> Deadline:
        known, floor_s = self._known[rank], self._limits.at_work_floor_s
        learned, at_work_s = known.deadlines.of(call), known.at_work_s[call.lane, call.call]
        if learned.seconds >= floor_s or at_work_s < AT_WORK_SHARE * (now - call.began_at):
            return learned
        return Deadline(floor_s, f"the least for one that is at work, as it was for {at_work_s:.1f} s")

    def _judged(self, rank: int, seen: Observation, call: Running, age_s: float, deadline: Deadline) -> Stall:
        batch = f"{call.shape.tokens} tokens of {call.shape.requests} requests"
        reason = (
            f"no progress in {call.phase} of step {call.step} ({batch}) for {age_s:.1f} s, state {seen.state}; "
            f"its deadline was {deadline.seconds:.1f} s: {deadline.source}"
        )
        return Stall(rank, seen.pid, False, reason, call, age_s, deadline)


def _grown(seconds: Mapping[Call, float], running: list[Call], by_s: float) -> dict[Call, float]:
    """Return the seconds of the calls that run, each `by_s` longer; calls that ended are left out."""
    return {call: seconds.get(call, 0.0) + by_s for call in running}
