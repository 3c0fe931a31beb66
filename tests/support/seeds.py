"""Seeds of random runs: a fixed range, or HOLDFAST_SEEDS=FIRST:END, set by `make nightly PART=simulation`."""

from __future__ import annotations

import os


def seeds(count: int) -> range:
    """The first `count` seeds, or those of the environment, however many."""
    if stated := os.environ.get("HOLDFAST_SEEDS"):
        first, end = map(int, stated.split(":"))
        return range(first, end)
    return range(count)
