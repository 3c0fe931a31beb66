"""Containment of one epoch: ranks that faulted, ranks that were told to stop, acknowledgements that are due.

Every epoch begins empty, and facts of another epoch are ignored.
"""

from __future__ import annotations

from holdfast.core.faults.faults import Fault, deeper


class Containment:
    """State of the ranks of an engine core in the present epoch."""

    def __init__(self, epoch: int = 0) -> None:
        self.begin(epoch)

    def begin(self, epoch: int) -> None:
        """Forget everything known of the previous epoch."""
        self.epoch = epoch
        self.fault: Fault | None = None  # the deepest that a rank reported
        self.broken = False  # whether collectives were broken
        self._faulted: set[int] = set()
        self._owing: set[int] = set()  # ranks whose acknowledgement is due
        self._acknowledge_by = float("inf")
        self._searching_until = 0.0

    def rank_faulted(self, rank: int, fault: Fault, epoch: int) -> bool:
        """Note the fault of a rank. Return True for a fault of the present epoch deeper than all known."""
        if epoch != self.epoch:
            return False
        self._faulted.add(rank)
        self._owing.discard(rank)  # a rank that faulted has stopped and broken its collectives by itself
        is_news = deeper(self.fault, fault) is fault
        self.fault = deeper(self.fault, fault)
        return is_news

    def break_ranks(self, ranks: set[int], acknowledge_by: float) -> set[int]:
        """Return the ranks to tell to break collectives; empty when collectives are broken already.

        The returned ranks have to acknowledge by `acknowledge_by`, on the monotonic clock.
        """
        if self.broken:
            return set()
        self.broken = True
        self._owing = ranks - self._faulted
        self._acknowledge_by = acknowledge_by
        return set(self._owing)

    def acknowledged(self, rank: int, epoch: int) -> None:
        """Note that a rank has stopped; ignore an acknowledgement of another epoch."""
        if epoch == self.epoch:
            self._owing.discard(rank)

    def overdue(self, now: float) -> set[int]:
        """Return the ranks that did not acknowledge in time, each rank once."""
        if now < self._acknowledge_by:
            return set()
        late, self._owing = self._owing, set()
        return late

    def search(self, until: float) -> None:
        """Keep the pause unannounced while the stalled rank is searched, no longer than `until`."""
        self._searching_until = until

    def end_search(self) -> None:
        """Let the pause be announced as soon as no acknowledgement is due."""
        self._searching_until = 0.0

    @property
    def acknowledgement_due_at(self) -> float:
        """Time by which an acknowledgement is due; infinity when none is due."""
        return self._acknowledge_by if self._owing else float("inf")

    @property
    def awaited_until(self) -> float:
        """Time until which the pause is not announced: ranks may still stop, or a search may still end."""
        return max(self._searching_until, self._acknowledge_by if self._owing else 0.0)
