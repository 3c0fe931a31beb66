"""When a step takes too long: a judgement that distrusts the judge. Pure.

Nobody is asked whether it is well: a rank that makes no progress in a step which never took so long has
stalled, whatever its other threads answer. Whatever could explain it otherwise counts for it: a suspect that gets no
processor or is at work, a machine that slept, a judge who came late.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from holdfast.core.stalls.step_deadlines import Deadline, Deadlines, Limits, Remembered
from holdfast.core.stalls.steps import Ended, Running


class Look(msgspec.Struct, frozen=True):
    """What was seen of a process just now.

    `starved_s`: since the last look it was so long ready to run and did not. `is_computing`: one of its threads or
    children had a processor for most of that time. `is_peer`: it is of another engine core; it may be waited for, and
    is accused there.
    """

    pid: int
    state: str
    running: tuple[Running, ...] = ()
    ended: tuple[Ended, ...] = ()
    starved_s: float = 0.0
    is_computing: bool = False
    is_peer: bool = False


class Stall(msgspec.Struct, frozen=True):
    """A process that makes no progress. `is_certain`: it is stopped, and does not merely wait for another."""

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
    """One process."""

    pid: int
    deadlines: Deadlines
    excused_s: dict[Call, float] = field(default_factory=dict)  # of its running calls
    at_work_s: dict[Call, float] = field(default_factory=dict)  # likewise
    unseen_s: dict[Call, float] = field(default_factory=dict)  # likewise: the machine slept, or somebody held them
    stopped_for_s: float | None = None


STOPPED, TRACED, IN_THE_KERNEL, DEAD = "T", "t", "D", frozenset("XZ")
AT_WORK_SHARE = 0.5
UNSEEN_SHARE = 0.5


class Stalls:
    """Judges processes that wait for each other in their steps: the ranks of one engine core, and its lockstep peers.

    A rank that waits for another in a collective waits as long as the other one may take: so every call has the
    longest deadline, and every excuse, of all that run.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[int, _Known] = {}
        self._remembered = Remembered()
        self._looked_at: float | None = None

    def begin_anew(self) -> None:
        """A recovery has let ranks back in: what was learned is no more than a hint until it is seen again."""
        for known in self._known.values():
            known.deadlines.forget()

    def watch_for(self, rank: int, pid: int) -> None:
        if rank not in self._known or self._known[rank].pid != pid:
            self._leave(rank)
            self._known[rank] = _Known(pid, Deadlines(self._limits, self._remembered))

    def _leave(self, rank: int) -> None:
        """A process is gone; the next one in its place will do the same work."""
        if (gone := self._known.pop(rank, None)) is not None:
            gone.deadlines.forget()

    def look(self, now: float, due_s: float, looks: Mapping[int, Look]) -> list[Stall]:
        """Judge what is seen, `due_s` after the last look if it came in time. Whoever is stopped is to blame alone."""
        elapsed_s = now - self._looked_at if self._looked_at is not None else due_s
        self._looked_at = now
        late_s = max(0.0, elapsed_s - due_s)
        late_s = late_s if late_s > self._limits.late_s else 0.0
        alive = {rank: look for rank, look in looks.items() if look.state not in DEAD}
        traced = any(look.state == TRACED for look in alive.values())
        unseen_s = elapsed_s if traced else late_s
        starved_s = 0.0 if traced else max((look.starved_s for look in alive.values()), default=0.0)
        for rank, look in alive.items():
            self._learn(rank, look, unseen_s)
            self._take(rank, look, unseen_s + starved_s, elapsed_s)
        for rank in self._known.keys() - alive.keys():
            self._leave(rank)
        stopped = [s for rank, look in alive.items() if (s := self._stopped(rank, look, elapsed_s - late_s))]
        some_stand = any(look.state == STOPPED for look in alive.values())  # and the others may wait for them
        return stopped if some_stand else self._overdue(now, alive)

    def _learn(self, rank: int, look: Look, unseen_s: float) -> None:
        """How long a call took in which the machine slept says what the machine did, and not what such a call takes."""
        self.watch_for(rank, look.pid)
        known = self._known[rank]
        for ended in look.ended:
            slept_s = known.unseen_s.get((ended.lane, ended.call), 0.0) + unseen_s
            if ended.lasted_s < self._limits.decode_floor_s or slept_s < UNSEEN_SHARE * ended.lasted_s:
                known.deadlines.learn(ended)
        running = [(call.lane, call.call) for call in look.running]
        known.unseen_s = _grown(known.unseen_s, running, unseen_s)

    def _take(self, rank: int, look: Look, excuse_s: float, elapsed_s: float) -> None:
        known = self._known[rank]
        running = [(call.lane, call.call) for call in look.running]
        known.excused_s = _grown(known.excused_s, running, excuse_s)
        known.at_work_s = _grown(known.at_work_s, running, elapsed_s if self._is_at_work(look) else 0.0)

    def _is_at_work(self, look: Look) -> bool:
        """Whether what it does may be what takes so long: it waits for a page of memory or a disk, or it compiles."""
        return look.state == IN_THE_KERNEL or (self._limits.may_compile and look.is_computing)

    def _stopped(self, rank: int, look: Look, elapsed_s: float) -> Stall | None:
        known = self._known[rank]
        if look.state != STOPPED or look.is_peer:
            known.stopped_for_s = None
            return None
        known.stopped_for_s = 0.0 if known.stopped_for_s is None else known.stopped_for_s + elapsed_s
        if known.stopped_for_s < self._limits.stopped_s:
            return None
        call = look.running[0] if look.running else None
        reason = f"its process {look.pid} is stopped (state T) for {known.stopped_for_s:.1f} s"
        return Stall(rank, look.pid, True, reason, call)

    def _overdue(self, now: float, looks: Mapping[int, Look]) -> list[Stall]:
        calls = [(rank, look, call) for rank, look in looks.items() for call in look.running]
        if not calls:
            return []
        bounds = [self._deadline(now, rank, call) for rank, _, call in calls]
        longest = max(bounds, key=lambda bound: bound.seconds)
        excused_s = max(max(self._known[rank].excused_s.values(), default=0.0) for rank, _, _ in calls)
        late = [(r, look, call) for r, look, call in calls if now - call.began_at - excused_s >= longest.seconds]
        return [self._judged(r, look, call, now - call.began_at, longest) for r, look, call in late if not look.is_peer]

    def _deadline(self, now: float, rank: int, call: Running) -> Deadline:
        known, floor_s = self._known[rank], self._limits.at_work_floor_s
        learned, at_work_s = known.deadlines.of(call), known.at_work_s.get((call.lane, call.call), 0.0)
        if learned.seconds >= floor_s or at_work_s < AT_WORK_SHARE * (now - call.began_at):
            return learned
        return Deadline(floor_s, f"the least for one that is at work, as it was for {at_work_s:.1f} s")

    def _judged(self, rank: int, look: Look, call: Running, age_s: float, deadline: Deadline) -> Stall:
        batch = f"{call.shape.tokens} tokens of {call.shape.requests} requests"
        reason = (
            f"no progress in {call.phase} of step {call.step} ({batch}) for {age_s:.1f} s, state {look.state}; "
            f"its deadline was {deadline.seconds:.1f} s: {deadline.source}"
        )
        return Stall(rank, look.pid, False, reason, call, age_s, deadline)


def _grown(seconds: Mapping[Call, float], running: list[Call], by_s: float) -> dict[Call, float]:
    """Of the calls that run, as they were and longer."""
    return {call: seconds.get(call, 0.0) + by_s for call in running}
