"""The front end's request journal: every open request as added, and the tokens delivered since then.

With these, another engine core can resume a request. Requests are opaque here; one thread owns the journal. Large
inputs of requests, such as pictures, are counted: several requests may share one.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass
class OpenRequest(Generic[R]):
    """An open request. `unmovable`: reason why no engine core can take over the request; empty otherwise."""

    request: R
    unmovable: str = ""
    delivered: array[int] = field(default_factory=lambda: array("q"))
    inputs: Mapping[int, int] = field(default_factory=dict)


class RequestJournal(Generic[R]):
    """Journal of requests, each from arrival until the end.

    Inputs of a request are given as bytes by the identity of the input. `input_bytes` counts each input once.
    """

    def __init__(self, max_input_bytes: float = math.inf) -> None:
        self._open: dict[str, OpenRequest[R]] = {}
        self.max_input_bytes = max_input_bytes
        self._holders: Counter[int] = Counter()  # of each input: open requests
        self.input_bytes = 0

    def has_room(self, inputs: Mapping[int, int]) -> bool:
        """Return whether the inputs of a request fit beside those of the open requests."""
        added = sum(size for key, size in inputs.items() if key not in self._holders)
        return self.input_bytes + added <= self.max_input_bytes

    def open(self, request_id: str, request: R, unmovable: str = "", inputs: Mapping[int, int] | None = None) -> None:
        """Open a request. A request that is open already stays unchanged."""
        if request_id in self._open:
            return
        self._open[request_id] = entry = OpenRequest(request, unmovable)
        self.add_inputs(entry, inputs or {})

    def add_inputs(self, entry: OpenRequest[R], inputs: Mapping[int, int]) -> None:
        """Count inputs of an open request, which has some of them maybe already."""
        new = {key: size for key, size in inputs.items() if key not in entry.inputs}
        for key, size in new.items():
            self.input_bytes += 0 if key in self._holders else size
            self._holders[key] += 1
        entry.inputs = {**entry.inputs, **new}

    def deliver(self, request_id: str, tokens: Sequence[int]) -> None:
        """Note tokens that are sent to the client; ignored for a request that is not open."""
        entry = self._open.get(request_id)
        if entry is not None:
            entry.delivered.extend(tokens)

    def close(self, request_id: str) -> None:
        """Close a request that has finished or was aborted. Idempotent."""
        entry = self._open.pop(request_id, None)
        for key, size in entry.inputs.items() if entry is not None else ():
            self._holders[key] -= 1
            if not self._holders[key]:
                del self._holders[key]
                self.input_bytes -= size

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
        """Memory of the delivered tokens of all open requests, in bytes. Any thread."""
        return sum(entry.delivered.itemsize * len(entry.delivered) for entry in tuple(self._open.values()))
