"""What a numerical fault says of requests: it names those whose rows of a step were no numbers.

Whose rows were numbers in that same step is not suspected. A rank for which it is now these requests and now others
is sick: the requests are not to blame. KV of a named request is computed anew, once: it may have been spoilt before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from holdfast.core.faults.faults import MAX_REQUEST_IDS, Fault, FaultClass

Named = tuple[float, tuple[str, ...]]  # when a retry was made for these requests (seconds)


def named_by(fault: Fault | None) -> tuple[str, ...]:
    """The requests that a numerical fault tells from others; none where it names as many as it can, or nobody."""
    if fault is None or fault.fault_class is not FaultClass.NUMERICAL or len(fault.request_ids) >= MAX_REQUEST_IDS:
        return ()
    return fault.request_ids


def in_fault(batch: frozenset[str], named: Collection[str]) -> frozenset[str]:
    """Of the requests of a failed step those that it can have failed for: all where none are named."""
    return batch & frozenset(named) or batch


def names_others(fault: Fault | None, before: Sequence[Named]) -> bool:
    """Whether an earlier fault named somebody whom this one does not, and the other way round."""
    now = set(named_by(fault))
    return bool(now) and any(now - set(names) and set(names) - now for _, names in before)


class Spoilt:
    """Whose KV is to be computed anew after a numerical fault: whoever has got further since it was the last time."""

    def __init__(self) -> None:
        self._from: dict[str, int] = {}

    def due(self, named: Collection[str], reached: Mapping[str, int], good: Mapping[str, int]) -> tuple[str, ...]:
        self._from = {i: mark for i, mark in self._from.items() if i in good}
        due = tuple(i for i in named if i in good and good[i] > self._from.get(i, -1))
        self._from.update({i: reached[i] for i in due})
        return due
