"""How many ranks may be out at once: sick, gone, or of an engine core that is being replaced.

Ranks that only wait for these are not out. When more are out than that, something bigger is wrong than what the
rung at hand repairs.
"""

from __future__ import annotations

import math

import msgspec

from holdfast.core.config import share_of


class RanksOut(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of an instance that are out: all of them, those `elsewhere` than in the engine at hand, of `total`.

    `own` is how many ranks the engine at hand has.
    """

    now: int = 0
    elsewhere: int = 0
    own: int = 0
    total: int = 0

    def too_many_to_restart(self, cap: int | str) -> str | None:
        """Why ranks are not replaced one by one; none where they may be. At least one is out where that is asked."""
        out, allowed = max(1, self.now), ranks_allowed_out(cap, self.total)
        return None if out <= allowed else self._more_than(out, cap)

    def too_many_to_replace(self, cap: int | str) -> str | None:
        """Why the engine at hand is not replaced. One that is the only one out always may be."""
        out, allowed = self.elsewhere + self.own, ranks_allowed_out(cap, self.total)
        return None if not self.elsewhere or out <= allowed else self._more_than(out, cap)

    def _more_than(self, out: int, cap: int | str) -> str:
        return f"{out} of {self.total} ranks would be out at once (--max-ranks-out {cap})"


def ranks_allowed_out(cap: int | str, total: int) -> float:
    """A cap as a number of ranks. A share allows one at least, and the whole of them is no cap."""
    if isinstance(cap, int):
        return cap
    share = share_of(cap)
    return math.inf if share == 1 else max(1, math.floor(total * share))
