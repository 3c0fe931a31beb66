"""How much of a step goes to requests that are computed again after a loss, while others decode beside them. Pure.

A step takes as long as the tokens that it computes, and everybody in it waits for its end. Without a bound those who
never lost anything would get a token only once in each full step of somebody else's history.
"""

from __future__ import annotations

from collections.abc import Mapping


class Pacing:
    """The requests of one engine core whose histories are computed again. One thread owns it."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens_per_step = tokens_per_step
        self._until: dict[str, int] = {}

    def begin(self, request_id: str, tokens: int) -> None:
        """A request is computed again, up to so many tokens."""
        self._until[request_id] = tokens

    def note(self, computed: Mapping[str, int]) -> None:
        """How many tokens are computed by now of each request that is still there; who has caught up is forgotten."""
        self._until = {i: until for i, until in self._until.items() if computed.get(i, until) < until}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._until

    @property
    def is_over(self) -> bool:
        return not self._until

    def step_tokens(self, whole_step: int, beside: int) -> int:
        """How many tokens a step may have, of which `beside` are for requests that lost nothing."""
        return min(whole_step, beside + self._tokens_per_step)
