"""The reason of an ended request reaches the client, by the client's request id."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import GenerationError

from holdfast.hosts.vllm.serving import error_reasons as words


def refused(*_: object) -> None:
    raise GenerationError("Internal server error")


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    words._kept.clear()


@pytest.mark.parametrize(
    ("known", "asked"),
    [
        ("cmpl-a-0-1f2e3d4c", "cmpl-a"),
        ("1_cmpl-a-0-1f2e3d4c", "cmpl-a"),
        ("chatcmpl-a-1f2e3d4c", "chatcmpl-a"),
        ("a", "a"),
    ],
)
def test_a_client_is_told_the_reason(known: str, asked: str) -> None:
    words.keep_error_reason(known, "it was ended")
    with pytest.raises(GenerationError, match="it was ended"):
        words._raise_if_error(refused, None, "error", asked)


def test_a_request_without_a_reason_gets_the_host_error() -> None:
    words.keep_error_reason("cmpl-31-0-1f2e3d4c", "it was ended")
    words.keep_error_reason("cmpl-5-0-1f2e3d4c", None)
    for asked in ("cmpl-3", "cmpl-5"):
        with pytest.raises(GenerationError, match="Internal server error"):
            words._raise_if_error(refused, None, "error", asked)


def test_a_request_without_an_error_is_left_to_the_host() -> None:
    words.keep_error_reason("cmpl-a-0-1f2e3d4c", "it was ended")
    asked: list[tuple[object, ...]] = []
    words._raise_if_error(lambda *about: asked.append(about), None, "stop", "cmpl-a")
    assert asked == [(None, "stop", "cmpl-a")]


def test_the_number_of_kept_reasons_is_bounded() -> None:
    for index in range(words.MAX_KEPT + 50):
        words.keep_error_reason(f"r{index}-", "why")
    assert len(words._kept) == words.MAX_KEPT
