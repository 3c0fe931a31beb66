"""What a client saw of one answer: its tokens, when each arrived, and how it ended.

Pure data. Times are seconds of the client's monotonic clock.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass
class History:
    """One answer as it grows; `name` is the request's, with the choice's index when it has several.

    `engine_id` is the engine that it was sent to, none where the server chose; `port` is the
    client's, of the connection on which the answer came, none before it did.
    """

    name: str
    sent_s: float
    token_ids: list[int] = field(default_factory=list)
    arrivals_s: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    error: str | None = None
    engine_id: int | None = None
    port: int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def add(self, token_ids: list[int], text: str, now_s: float) -> None:
        self.token_ids.extend(token_ids)
        self.arrivals_s.extend([now_s] * len(token_ids))
        self.text += text

    def gaps_s(self) -> list[float]:
        """Seconds between successive tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals_s)]
