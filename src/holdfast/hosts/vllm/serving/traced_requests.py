"""Open requests that their clients trace: the headers by which a span of Holdfast is linked to theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast.core.requests.journal import RequestJournal


def trace_headers(journal: RequestJournal[Any]) -> Iterator[Mapping[str, str]]:
    """Yield the trace headers of open requests. Any thread; requests may end meanwhile."""
    for request_id in journal:
        entry = journal.get(request_id)
        headers = None if entry is None else entry.request.trace_headers
        if headers:
            yield headers
