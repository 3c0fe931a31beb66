"""Requests that a numerical fault names: which they are, and which of them get their KV computed again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from holdfast.core.faults.faults import MAX_REQUEST_IDS, Fault, FaultClass

Named = tuple[float, tuple[str, ...]]  # when a retry was made for these requests (seconds)


def named_by(fault: Fault | None) -> tuple[str, ...]:
    """Return the requests that a numerical fault names; empty when the fault names none, or as many as fit."""
    if fault is None or fault.fault_class is not FaultClass.NUMERICAL or len(fault.request_ids) >= MAX_REQUEST_IDS:
        return ()
    return fault.request_ids


def in_fault(batch: frozenset[str], named: Collection[str]) -> frozenset[str]:
    """Return the requests for which a step can have failed: the named ones of the batch, all without names."""
    return batch & frozenset(named) or batch


def names_others(fault: Fault | None, before: Sequence[Named]) -> bool:
    """Return True when the fault and an earlier fault each name a request that only one fault names."""
    now = set(named_by(fault))
    return bool(now) and any(now - set(names) and set(names) - now for _, names in before)


class Spoilt:
    """Marks of requests whose KV was computed again after a numerical fault, once for the same KV."""

    def __init__(self) -> None:
        self._from: dict[str, int] = {}

    def due(self, named: Collection[str], reached: Mapping[str, int], good: Mapping[str, int]) -> tuple[str, ...]:
        """Return the named requests whose KV is to be computed again: requests with progress since the last time."""
        self._from = {i: mark for i, mark in self._from.items() if i in good}
        due = tuple(i for i in named if i in good and good[i] > self._from.get(i, -1))
        self._from.update({i: reached[i] for i in due})
        return due
