"""Requests that a numerical fault names: which they are, whose KV is computed again, and whether a rank is at fault."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

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


class Position(Protocol):
    """Progress of an open request, as far as needed here."""

    @property
    def good(self) -> int: ...

    @property
    def reached(self) -> int: ...

    @property
    def in_flight(self) -> bool: ...


class NamedRequests:
    """Requests that numerical faults have named lately. They tell a faulty rank from guilty requests.

    A faulty rank computes non-finite logits for one request and then for another, and the first gets further meanwhile.
    A guilty request never does.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._marks: dict[str, tuple[int, float]] = {}  # position at the fault, and when

    def take(self, named: Collection[str], progress: Mapping[str, Position], now: float) -> bool:
        """Take a fault. Return True if it names requests, and no earlier named request is known to be well since."""
        known = {i: mark for i, (mark, at) in self._marks.items() if now - at < self._window_s}
        well = [i for i, mark in known.items() if i not in named and _is_well(progress.get(i), mark)]
        self._marks = {i: self._marks[i] for i in known}
        self._marks.update({i: (progress[i].reached, now) for i in named if i in progress})
        return bool(named) and not well

    def forget(self) -> None:
        """Forget everything: the processes are new."""
        self._marks = {}


def _is_well(progress: Position | None, mark: int) -> bool:
    """Return whether a request got further, or was in the failed step without being named."""
    return progress is not None and (progress.good > mark or progress.in_flight)
