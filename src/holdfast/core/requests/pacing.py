"""Pacing of requests that are computed again after a loss, beside requests that decode. Pure.

A step takes as long as its tokens, and every request in the step waits for the end. Without a bound, requests that
lost nothing would get one token per full step of another request's history.
"""

from __future__ import annotations

from collections.abc import Mapping


class Pacing:
    """Requests of an engine core whose histories are computed again. Owned by a single thread."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._until: dict[str, int] = {}

    def begin(self, request_id: str, tokens: int) -> None:
        """Pace a request until so many tokens are computed."""
        self._until[request_id] = tokens

    def note(self, computed: Mapping[str, int]) -> None:
        """Take the number of computed tokens of every open request; forget requests that have caught up."""
        self._until = {i: until for i, until in self._until.items() if computed.get(i, until) < until}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._until

    @property
    def is_over(self) -> bool:
        return not self._until

    def step_tokens(self, whole_step: int, beside: int) -> int:
        """Return how many tokens a step may have, when `beside` tokens are for requests that lost nothing."""
        return min(whole_step, beside + self._tokens_per_step)
