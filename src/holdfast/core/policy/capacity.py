"""How many ranks may be out at once: sick, lost, or of an engine core that is being replaced.

Ranks that only wait for those are not out. With more ranks out than the cap allows, more is wrong than the rung at
hand can repair.
"""

from __future__ import annotations

import math

import msgspec

from holdfast.core.config import share_of


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of ranks that are out, seen from an engine core.

    `ranks_out` counts the whole instance, `out_elsewhere` the other engine cores. `engine_ranks` is the size of the
    engine core, `total_ranks` the size of the instance.
    """

    ranks_out: int = 0
    out_elsewhere: int = 0
    engine_ranks: int = 0
    total_ranks: int = 0

    def why_no_worker_restart(self, cap: int | str) -> str | None:
        """Return why single ranks are not replaced, None where that is allowed."""
        out, allowed = max(1, self.ranks_out), ranks_allowed_out(cap, self.total_ranks)
        return None if out <= allowed else self._exceeded(out, cap)

    def why_no_engine_restart(self, cap: int | str) -> str | None:
        """Return why the engine core is not replaced, None where allowed: always if no rank elsewhere is out."""
        out, allowed = self.out_elsewhere + self.engine_ranks, ranks_allowed_out(cap, self.total_ranks)
        return None if not self.out_elsewhere or out <= allowed else self._exceeded(out, cap)

    def _exceeded(self, out: int, cap: int | str) -> str:
        return f"{out} of {self.total_ranks} ranks would be out at once (--max-ranks-out {cap})"


def ranks_allowed_out(cap: int | str, total_ranks: int) -> float:
    """Return a cap as a number of ranks. A share allows at least 1 rank; a share of 100 % is no cap."""
    if isinstance(cap, int):
        return cap
    share = share_of(cap)
    return math.inf if share == 1 else max(1, math.floor(total_ranks * share))
