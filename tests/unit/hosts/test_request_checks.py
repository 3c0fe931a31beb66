"""A request that cannot be encoded for an engine core is the client's error, found before anything is kept."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from holdfast.hosts.vllm.serving.request_checks import check_inputs


@pytest.mark.parametrize(
    ("request_id", "params", "why"),
    [
        ("cmpl-1", SamplingParams(top_k=2**64), "2^64 - 1"),
        ("cmpl-1", SamplingParams(stop=["\ud800"]), "'\\ud800'"),
        ("cmpl-1", SamplingParams(bad_words=["\ud800"]), "'\\ud800'"),
        ("\udfff", SamplingParams(), "'\\udfff'"),
    ],
    ids=["number", "stop string", "bad word", "request id"],
)
def test_what_cannot_be_sent_is_refused_with_a_reason_before_the_host_looks_at_it(
    request_id: str, params: SamplingParams, why: str
) -> None:
    def looked_at(*about: Any) -> Any:
        raise AssertionError("the host looked at the request")

    with pytest.raises(VLLMValidationError) as refused:
        check_inputs(looked_at, None, request_id, "prompt", params)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(top_k=5, stop=["\U0001f600"], seed=7, extra_args={"a": object()})]
)
def test_what_can_be_sent_is_processed_by_the_host(params: SamplingParams) -> None:
    assert check_inputs(lambda *about: about, "processor", "cmpl-1", "prompt", params, "more") == (
        "processor",
        "cmpl-1",
        "prompt",
        params,
        "more",
    )
