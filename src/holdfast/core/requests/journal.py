"""The front end's journal: every open request as it was added, and the tokens that were delivered for it since.

What another engine core needs to go on with it. Nothing here knows what a request is; one thread owns it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass
class OpenRequest(Generic[R]):
    """One request. `unmovable` says why no other engine core could go on with it; empty where one could."""

    request: R
    unmovable: str = ""
    delivered: array[int] = field(default_factory=lambda: array("q"))


class RequestJournal(Generic[R]):
    """Holds a request from when it is added until it has finished: as much as is open, never more."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest[R]] = {}

    def open(self, request_id: str, request: R, unmovable: str = "") -> None:
        """A request was added. One that is open already stays as it began."""
        self._open.setdefault(request_id, OpenRequest(request, unmovable))

    def deliver(self, request_id: str, tokens: Sequence[int]) -> None:
        """Tokens of a request are on their way to its client. Of one that is not open: nobody waits for them."""
        entry = self._open.get(request_id)
        if entry is not None:
            entry.delivered.extend(tokens)

    def close(self, request_id: str) -> None:
        """It has finished, or nobody wants it any more. Idempotent."""
        self._open.pop(request_id, None)

    def get(self, request_id: str) -> OpenRequest[R] | None:
        return self._open.get(request_id)

    def __iter__(self) -> Iterator[str]:
        """The ids of all open requests, oldest first; a copy, so that they may be closed meanwhile."""
        return iter(tuple(self._open))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    @property
    def delivered_bytes(self) -> int:
        """What the delivered tokens of all open requests take. The requests themselves are the host's."""
        return sum(entry.delivered.itemsize * len(entry.delivered) for entry in self._open.values())
