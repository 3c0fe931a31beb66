"""Calls that make a step, as seen from outside: amount of work, start and duration. Pure data."""

from __future__ import annotations

import msgspec

from holdfast.core.faults.faults import Phase


class BatchShape(msgspec.Struct, frozen=True):
    """Amount of work of a step."""

    tokens: int
    requests: int

    @property
    def is_prefill(self) -> bool:
        """Whether a request of the step computes more than the next token."""
        return self.tokens > self.requests

    @property
    def bucket(self) -> int:
        """Bucket of shapes with about the same work: the next power of two of tokens, prefill and decode apart."""
        return 2 * self.tokens.bit_length() + self.is_prefill


class Running(msgspec.Struct, frozen=True):
    """A call that has begun and has not ended. `began_at` is on the monotonic clock."""

    lane: int
    call: int
    step: int
    phase: Phase
    shape: BatchShape
    began_at: float
    is_first: bool = False


class Ended(msgspec.Struct, frozen=True):
    """A call that has ended. `is_typical`: the call was not the first of its shape, and did not raise."""

    phase: Phase
    shape: BatchShape
    lasted_s: float
    is_typical: bool = True
    lane: int = 0
    call: int = 0
