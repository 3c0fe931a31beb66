"""Metrics of a process that serves requests: interruptions, moves, failures, and the request journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.api.metrics import catalog as c
from holdfast.api.metrics.exposition import Exposition
from holdfast.core.requests.interruptions import Interruption


@dataclass(frozen=True)
class Journal:
    """Size of a request journal."""

    requests: int
    bytes: int
    limit_bytes: float


class FrontEndMetrics:
    """Listener to a router's streams; `refresh` shows what has no event."""

    def __init__(
        self, exposition: Exposition, journal: Callable[[], Journal], owner_answers: Callable[[], bool] = lambda: True
    ) -> None:
        self._show, self._journal, self._owner_answers = exposition, journal, owner_answers
        exposition(c.INTERRUPTION)
        exposition(c.RECOMPUTED).inc(0)
        for what in (c.Outcome.MOVED, c.Outcome.FAILED):
            exposition(c.REQUESTS, what).inc(0)
        self.refresh()

    def interrupted(self, interruption: Interruption) -> None:
        self._show(c.INTERRUPTION).observe(interruption.longest_wait_s)
        if interruption.first_token_s is not None:
            self._show(c.PHASES, c.Phase.FIRST_TOKEN).observe(interruption.first_token_s)

    def moved(self, tokens: int) -> None:
        self._show(c.REQUESTS, c.Outcome.MOVED).inc()
        self._show(c.RECOMPUTED).inc(tokens)

    def failed(self) -> None:
        self._show(c.REQUESTS, c.Outcome.FAILED).inc()

    def refresh(self) -> None:
        """Show the size of the journal, and whether the owner answers."""
        journal = self._journal()
        self._show(c.JOURNAL_REQUESTS).set(journal.requests)
        self._show(c.JOURNAL_BYTES).set(journal.bytes)
        self._show(c.JOURNAL_LIMIT).set(journal.limit_bytes)
        self._show(c.OWNER_UP).set(self._owner_answers())
