"""What an engine core knows of its ranks in one epoch: who faulted, who was told to stop, who still owes an answer.

Shared between the busy loop's thread and the sentinel's: every access is under its lock, none of them waits
but those that say so. An epoch begins with a clean slate; what belongs to another one is not taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from holdfast.core.faults.faults import Fault, deeper


class Containment:
    """The ranks of one engine core in the present epoch."""

    def __init__(self, acknowledge_timeout_s: float) -> None:
        self._changed = threading.Condition()
        self._acknowledge_timeout_s = acknowledge_timeout_s
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._fault: Fault | None = None
        self._broken = False
        self._faulted: set[int] = set()
        self._owing: set[int] = set()
        self._deadline = float("inf")
        self._searching_until = 0.0

    def begin(self, epoch: int) -> None:
        with self._changed:
            self._begin(epoch)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def broken(self) -> bool:
        """Whether collectives were broken in this epoch."""
        return self._broken

    @property
    def fault(self) -> Fault | None:
        """The deepest fault that a rank reported in this epoch."""
        return self._fault

    def rank_faulted(self, rank: int, fault: Fault, epoch: int) -> bool:
        """Take a rank's own account; true when it is of this epoch and says more than was known."""
        with self._changed:
            if epoch != self._epoch:
                return False
            self._faulted.add(rank)
            self._owing.discard(rank)  # a rank that faulted has stopped and broken its collectives itself
            is_news = deeper(self._fault, fault) is fault
            self._fault = deeper(self._fault, fault)
            self._changed.notify_all()
            return is_news

    def wait_for_rank_fault(self, timeout_s: float) -> Fault | None:
        with self._changed:
            self._changed.wait_for(lambda: self._fault is not None, timeout_s)
            return self._fault

    def order_break(self, epoch: int, ranks: set[int], now: float) -> set[int]:
        """The ranks to be told to break their collectives of `epoch`; nobody is told twice."""
        with self._changed:
            if epoch != self._epoch or self._broken:
                return set()
            self._broken = True
            self._owing = ranks - self._faulted
            self._deadline = now + self._acknowledge_timeout_s
            return set(self._owing)

    def acknowledged(self, rank: int, epoch: int) -> None:
        """A rank has stopped. A stale acknowledgement changes nothing."""
        with self._changed:
            if epoch == self._epoch:
                self._owing.discard(rank)
                self._changed.notify_all()

    def wait_stopped(self) -> None:
        """Until every rank that was told to stop has said so and nobody is looked for, or their time is over."""
        with self._changed:
            while (left_s := self._awaited_until() - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _awaited_until(self) -> float:
        return max(self._searching_until, self._deadline if self._owing else 0.0)

    def search(self, until: float) -> None:
        """Who is to blame is looked for until then: what is said before would be said too early. 0 ends it."""
        with self._changed:
            self._searching_until = until
            self._changed.notify_all()

    def during(self, epoch: int, call: Callable[[], object]) -> None:
        """Run `call`, which must not wait, unless another epoch has begun; none begins meanwhile."""
        with self._changed:
            if epoch == self._epoch:
                call()

    @property
    def owes(self) -> bool:
        """Whether an acknowledgement is awaited."""
        return bool(self._owing)

    def overdue(self, now: float) -> set[int]:
        """The ranks that did not acknowledge in time; each is named once."""
        with self._changed:
            if now < self._deadline:
                return set()
            late, self._owing = self._owing, set()
            return late
