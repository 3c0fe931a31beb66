"""What is seen of the calls that make a step: how much work each is, when it began, how long it took. Pure data."""

from __future__ import annotations

import msgspec

from holdfast.core.faults.faults import Phase


class BatchShape(msgspec.Struct, frozen=True):
    """How much work a step is."""

    tokens: int
    requests: int

    @property
    def is_prefill(self) -> bool:
        """Whether a request in it computes more than its next token."""
        return self.tokens > self.requests

    @property
    def bucket(self) -> int:
        """Shapes of about the same work: the next power of two of its tokens, prefill and decode apart."""
        return 2 * self.tokens.bit_length() + self.is_prefill


class Running(msgspec.Struct, frozen=True):
    """A call that was begun and has not ended. `began_at` is on the monotonic clock."""

    lane: int
    call: int
    step: int
    phase: Phase
    shape: BatchShape
    began_at: float
    is_first: bool = False


class Ended(msgspec.Struct, frozen=True):
    """A call that ended. `is_typical`: it was not the first of its shape, and did not raise."""

    phase: Phase
    shape: BatchShape
    lasted_s: float
    is_typical: bool = True
    lane: int = 0
    call: int = 0
