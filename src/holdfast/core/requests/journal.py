"""The front end's request journal: every open request as added, and the tokens delivered since then.

With these, another engine core can resume a request. Requests are opaque here; one thread owns the journal.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass
class OpenRequest(Generic[R]):
    """An open request. `unmovable`: reason why no engine core can take over the request; empty otherwise."""

    request: R
    unmovable: str = ""
    delivered: array[int] = field(default_factory=lambda: array("q"))


class RequestJournal(Generic[R]):
    """Journal of requests, each from arrival until the end."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest[R]] = {}

    def open(self, request_id: str, request: R, unmovable: str = "") -> None:
        """Open a request. A request that is open already stays unchanged."""
        self._open.setdefault(request_id, OpenRequest(request, unmovable))

    def deliver(self, request_id: str, tokens: Sequence[int]) -> None:
        """Note tokens that are sent to the client; ignored for a request that is not open."""
        entry = self._open.get(request_id)
        if entry is not None:
            entry.delivered.extend(tokens)

    def close(self, request_id: str) -> None:
        """Close a request that has finished or was aborted. Idempotent."""
        self._open.pop(request_id, None)

    def get(self, request_id: str) -> OpenRequest[R] | None:
        """Return an open request, or None."""
        return self._open.get(request_id)

    def __iter__(self) -> Iterator[str]:
        """Iterate over a copy of the ids of all open requests, oldest first; requests may be closed meanwhile."""
        return iter(tuple(self._open))

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    @property
    def delivered_bytes(self) -> int:
        """Memory of the delivered tokens of all open requests, in bytes."""
        return sum(entry.delivered.itemsize * len(entry.delivered) for entry in self._open.values())
