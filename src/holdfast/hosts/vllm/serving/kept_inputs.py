"""Multimodal inputs and prompt embeddings of open requests: kept in the journal, within a bound, for a move."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from holdfast.core.requests.journal import OpenRequest, RequestJournal
from holdfast.hosts.vllm.serving.resumption import unmovable

NO_ROOM = "its multimodal inputs did not fit into the journal (--max-journal-mib)"


class _NotKept:
    """Stands for prompt embeddings that are not kept, and have no fingerprint: equal to none."""


def open_in(journal: RequestJournal[Any], request: Any, *, is_sent: bool) -> None:
    """Open a request in the journal. Inputs beyond the bound are kept only while the request waits to be sent."""
    inputs = large_inputs(request)
    if journal.has_room(inputs):
        journal.open(request.request_id, request, unmovable(request), inputs)
    else:
        journal.open(request.request_id, _without_inputs(request) if is_sent else request, NO_ROOM)


def keep_more(journal: RequestJournal[Any], entry: OpenRequest[Any], request: Any) -> str:
    """Keep the inputs of `request` as further ones of an open request. Return why that request cannot move then."""
    inputs = large_inputs(request)
    if not journal.has_room(inputs):
        return NO_ROOM
    journal.add_inputs(entry, inputs)
    return unmovable(request)


def large_inputs(request: Any) -> dict[int, int]:
    """Return the size in bytes of each multimodal input and of prompt embeddings, by the identity of the object."""
    sizes = {}
    if request.mm_features:
        from vllm.multimodal.cache.base import MultiModalCache

        sizes = {id(f.data): MultiModalCache.get_item_size(f.data) for f in request.mm_features if f.data is not None}
    if request.prompt_embeds is not None:
        sizes[id(request.prompt_embeds)] = request.prompt_embeds.nbytes
    return sizes


def _without_inputs(request: Any) -> Any:
    """Return a copy of a request with the names of its inputs only."""
    bare = copy.copy(request)
    bare.prompt_embeds = None if request.prompt_embeds is None else _NotKept()
    bare.mm_features = [dataclasses.replace(feature, data=None) for feature in request.mm_features or ()] or None
    return bare
