"""Search for the rank that stalls, among ranks that wait for each other.

Ranks that make no progress may only wait for a peer in a collective. Once their collectives are broken, ranks that
only waited leave their step; a rank that is still in the same call after `PROBE_S` is hung.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.core.stalls.stalls import Stall

PROBE_S = 0.4  # until a rank whose collectives were broken has left its step, if it only waited in one


class StallSearch:
    """Search for a hung rank, a single search at a time. `declared`: process ids of ranks that were declared hung."""

    def __init__(self) -> None:
        self._suspects: dict[int, Stall] = {}
        self._until = 0.0
        self.declared: set[int] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether ranks are suspected that may still leave their step."""
        return bool(self._suspects)

    @property
    def suspects(self) -> list[int]:
        """Ranks that are suspected, in ascending order."""
        return sorted(self._suspects)

    def begin(self, stalls: Sequence[Stall], now: float) -> float:
        """Suspect the stalled ranks; return the time at which the search is decided."""
        self._suspects = {stall.rank: stall for stall in stalls}
        self._until = now + PROBE_S
        return self._until

    def decide(self, stalls: Sequence[Stall], now: float) -> list[Stall] | None:
        """Return the stalls of hung ranks, which ends the search; None while the search goes on.

        A stopped process is certain at once. Otherwise suspects are hung that are still in the same call at the end.
        """
        certain = [stall for stall in stalls if stall.is_certain]
        if not certain and now < self._until:
            return None
        still = [s for s in stalls if (was := self._suspects.get(s.rank)) is not None and s.call == was.call]
        self._suspects = {}
        return certain or still
