"""Readmission of requests that lost their engine core, and detection of the request that kills engine cores.

A request that was with two engine cores at their deaths, without progress in between, is a suspect. Suspects are sent
one at a time, the next one when the one before has got some tokens further. The death of an engine core costs tens of
seconds and its requests are not rewound, so suspects are not tried by halves. Pure; one thread owns the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SUSPECT_LOSSES = 2
CLEARED_TOKENS = 3
# So often an engine core dies while this one is on trial; others have passed their trials in between.
TRIAL_LOSSES = 2


@dataclass
class _Lost:
    """A request after a loss of its engine core. `at`: tokens delivered at the last loss; `tried`: losses on trial."""

    at: int
    losses: int = 1
    tried: int = 0


class Readmission:
    """Requests of a front end that were with an engine core that died."""

    def __init__(self) -> None:
        self._lost: dict[str, _Lost] = {}
        self._on_trial: str | None = None
        self._others_pass = False

    def lost(self, delivered: Mapping[str, int]) -> str | None:
        """Take the requests of a dead engine core, with delivered tokens. Return the poison request if known."""
        tried, self._on_trial = self._on_trial if self._on_trial in delivered else None, None
        for request_id, tokens in delivered.items():
            known = self._lost.get(request_id)
            if known is None or tokens > known.at:
                self._lost[request_id] = _Lost(tokens)
            else:
                known.losses += 1
        return self._judge(tried) if tried is not None else None

    def _judge(self, tried: str) -> str | None:
        entry = self._lost[tried]
        entry.tried += entry.losses >= SUSPECT_LOSSES
        alone = not any(self._is_suspect(i) for i in self._lost if i != tried)
        return tried if entry.tried >= TRIAL_LOSSES and (alone or self._others_pass) else None

    def may_go(self, request_id: str) -> bool:
        """Return True when a request may be sent to an engine core now; a suspect is on trial from then on."""
        if not self._is_suspect(request_id):
            return True
        if self._on_trial is None and request_id == self._next():
            self._on_trial = request_id
        return self._on_trial == request_id

    def _next(self) -> str:
        """Return the suspect with the fewest trials, the earliest loss first."""
        return min(filter(self._is_suspect, self._lost), key=lambda i: self._lost[i].tried)

    def _is_suspect(self, request_id: str) -> bool:
        known = self._lost.get(request_id)
        return known is not None and known.losses >= SUSPECT_LOSSES

    @property
    def is_trying(self) -> bool:
        """Whether a suspect is on trial: only then delivered tokens matter."""
        return self._on_trial is not None

    def delivered(self, request_id: str, tokens: int) -> bool:
        """Take the delivered tokens of a request. Return True at the end of a trial, when the next suspect may go."""
        if request_id != self._on_trial or tokens < self._lost[request_id].at + CLEARED_TOKENS:
            return False
        self._others_pass = True
        return self.closed(request_id)

    def closed(self, request_id: str) -> bool:
        """Forget a request. Return True when the request was on trial, and the next suspect may go."""
        self._lost.pop(request_id, None)
        if not any(map(self._is_suspect, self._lost)):
            self._others_pass = False
        if request_id != self._on_trial:
            return False
        self._on_trial = None
        return True
