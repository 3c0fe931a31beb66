"""A client's view of an answer: tokens, time of each arrival, and end.

Pure data. Times are seconds of the client's monotonic clock.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field


@dataclass
class History:
    """A growing answer; `name` is the request's, with the index of the choice when there are several.

    `engine_id` is the engine of the request, None when the server chooses; `port` is the client's port of the
    connection, None before the answer arrives.

    An `is_unseeded` answer differs from run to run. Its tokens are judged by `read_again_logprobs` instead: the
    logprobs of the same tokens when the model reads prompt and answer as one prompt, with those of the likeliest tokens
    (`read_again_best`). None until then.
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
    is_unseeded: bool = False
    prompt_token_ids: list[int] = field(default_factory=list)
    read_again_logprobs: list[float] | None = None
    read_again_best: list[float] | None = None
    read_again_error: str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def add(self, token_ids: list[int], text: str, now_s: float) -> None:
        self.token_ids.extend(token_ids)
        self.arrivals_s.extend([now_s] * len(token_ids))
        self.text += text

    def gaps_s(self) -> list[float]:
        """Return the seconds between successive tokens."""
        return [later - earlier for earlier, later in itertools.pairwise(self.arrivals_s)]
