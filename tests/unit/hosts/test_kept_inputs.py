"""Pictures of open requests: kept for a move to another engine core, within a bound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

from holdfast.core.requests.journal import RequestJournal
from holdfast.hosts.vllm.contract.name_touchpoints import ONE_CACHE
from holdfast.hosts.vllm.serving.client_hooks import _processor_cache_kind
from holdfast.hosts.vllm.serving.kept_inputs import NO_ROOM, large_inputs, open_in

KIB = 1024


def picture(size: int = KIB) -> MultiModalKwargsItem:
    pixels = torch.zeros(size // 4)
    return MultiModalKwargsItem({"pixels": MultiModalFieldElem(data=pixels, field=MultiModalBatchedField())})


def request(request_id: str, *pictures: Any, embeds: torch.Tensor | None = None) -> Any:
    place = PlaceholderRange(offset=0, length=1)
    features = [MultiModalFeatureSpec(data=p, modality="image", identifier="p", mm_position=place) for p in pictures]
    return SimpleNamespace(
        request_id=request_id, mm_features=features or None, prompt_embeds=embeds, sampling_params=None
    )


def test_an_image_request_moves_like_any_other_and_a_shared_picture_counts_once() -> None:
    journal: RequestJournal[Any] = RequestJournal(2 * KIB)
    shared = picture()
    for name in ("a", "b"):
        open_in(journal, request(name, shared), is_sent=True)
    open_in(journal, request("c", embeds=torch.zeros(KIB // 4)), is_sent=True)
    assert journal.input_bytes == 2 * KIB
    assert [journal.get(name).unmovable for name in "abc"] == ["", "", ""]  # type: ignore[union-attr]


@pytest.mark.parametrize("is_sent", [True, False])
def test_beyond_the_bound_nothing_is_kept_of_a_picture_that_was_sent(is_sent: bool) -> None:
    journal: RequestJournal[Any] = RequestJournal(KIB - 1)
    asked = request("a", picture())
    open_in(journal, asked, is_sent=is_sent)
    entry = journal.get("a")
    assert entry is not None
    [kept] = entry.request.mm_features
    assert (entry.unmovable, kept.data is None, kept.identifier, journal.input_bytes) == (NO_ROOM, is_sent, "p", 0)
    assert asked.mm_features[0].data is not None, "the request that is sent is untouched"


def test_a_request_without_its_pictures_says_so() -> None:
    journal: RequestJournal[Any] = RequestJournal()
    open_in(journal, request("a", None), is_sent=True)
    assert journal.get("a").unmovable  # type: ignore[union-attr]
    assert large_inputs(request("b", None)) == {}


@pytest.mark.parametrize(("kind", "expected"), [("lru", ONE_CACHE), ("shm", ONE_CACHE), (None, None)])
def test_a_protected_instance_has_one_cache_of_pictures(kind: str | None, expected: str | None) -> None:
    """With a second one in the engine core, requests name pictures that only the lost process had."""
    protected = SimpleNamespace(additional_config={"holdfast": {}})
    assert _processor_cache_kind(lambda config: kind, protected) == expected
    for plain in ({}, {"holdfast": {"enable_fault_tolerance": False}}):
        assert _processor_cache_kind(lambda config: kind, SimpleNamespace(additional_config=plain)) == kind
