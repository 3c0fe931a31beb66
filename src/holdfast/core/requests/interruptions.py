"""Interruptions of streams, measured where the tokens arrive: the longest wait between two tokens around a recovery.

The news of a fault and the tokens come on different ways, so either may be late: a stream that a fault has met is
watched until its first token after the news that its engine core is well again, and the longest wait counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interruption:
    """Interruption of a stream, in seconds.

    `first_token_s` is the time from the news of the recovery to the first token of all streams, None for later streams.
    """

    longest_wait_s: float
    first_token_s: float | None = None


@dataclass
class _Engine:
    is_well: bool = True
    repairs: int = 0
    well_at: float = 0.0
    awaits_token: bool = False  # the first of all streams since the engine core is well


@dataclass
class _Watched:
    """Stream that a fault has met, on an engine core with so many repairs."""

    engine_id: int
    repairs: int
    longest_wait_s: float


class Interruptions:
    """Watches the streams of a serving process. Times are in seconds of one clock."""

    def __init__(self) -> None:
        self._engines: dict[int, _Engine] = {}
        self._last: dict[str, tuple[float, float]] = {}  # of each stream: the last token, and the wait before the token
        self._watched: dict[str, _Watched] = {}

    @property
    def watched(self) -> int:
        """Return how many streams are watched."""
        return len(self._watched)

    def is_news(self, engine_id: int, is_well: bool, repairs: int) -> bool:
        """Return whether `follow` would learn anything. Any thread."""
        known = self._engines.get(engine_id)
        return (is_well, repairs) != ((True, 0) if known is None else (known.is_well, known.repairs))

    def follow(self, engine_id: int, is_well: bool, repairs: int, streams: Iterable[str], now: float) -> None:
        """Take whether an engine core is well, and how often it was repaired.

        `streams` are its requests, and are read only when a fault is new.
        """
        engine = self._engines.setdefault(engine_id, _Engine())
        if engine.is_well and (not is_well or repairs > engine.repairs):
            is_late = is_well  # the whole recovery is over
            for request_id in streams:
                if request_id in self._last and request_id not in self._watched:
                    wait_s = self._last[request_id][1] if is_late else 0.0
                    self._watched[request_id] = _Watched(engine_id, engine.repairs, wait_s)
        if is_well and (not engine.is_well or repairs > engine.repairs):
            engine.well_at, engine.awaits_token = now, True
        engine.is_well, engine.repairs = is_well, repairs

    def token(self, request_id: str, engine_id: int, now: float) -> Interruption | None:
        """Take a token of a stream; return the interruption that has ended with the token."""
        last = self._last.get(request_id)
        wait_s = 0.0 if last is None else now - last[0]
        self._last[request_id] = (now, wait_s)
        if not self._watched or (watched := self._watched.get(request_id)) is None:
            return None
        watched.longest_wait_s = max(watched.longest_wait_s, wait_s)
        engine = self._engines.setdefault(engine_id, _Engine())  # well, as long as nothing else was heard
        if not engine.is_well:
            return None
        if engine_id == watched.engine_id and engine.repairs == watched.repairs:
            return None
        del self._watched[request_id]
        first_token_s = max(0.0, now - engine.well_at) if engine.awaits_token else None
        engine.awaits_token = False
        return Interruption(watched.longest_wait_s, first_token_s)

    def closed(self, request_id: str) -> None:
        """Forget a stream. Idempotent."""
        self._last.pop(request_id, None)
        self._watched.pop(request_id, None)
