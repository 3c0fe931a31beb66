"""A step that misses the output of an encoder names the requests with that input, under both model runners."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.core.faults.classification import default_classifier, fault_of
from holdfast.hosts.vllm.worker.encoder_misses import naming_encoder_misses

FEATURES = {"a": ["picture"], "b": ["other"], "c": ["other", "picture"], "d": []}


def features(names: list[str]) -> list[Any]:
    return [SimpleNamespace(identifier=name) for name in names]


def runner_v1() -> Any:
    requests = {i: SimpleNamespace(mm_features=features(names)) for i, names in FEATURES.items()}
    return SimpleNamespace(encoder_cache={}, requests=requests)


def runner_v2() -> Any:
    of_requests = {i: features(names) for i, names in FEATURES.items()}
    return SimpleNamespace(encoder_cache=SimpleNamespace(mm_features=of_requests))


@pytest.mark.parametrize("runner", [runner_v1(), runner_v2()], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("text", "named"), [("Encoder cache miss for picture.", ("a", "c")), ("something else about picture.", ())]
)
def test_the_requests_with_the_missing_input_are_named(runner: Any, text: str, named: tuple[str, ...]) -> None:
    def step() -> None:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError) as raised:
        naming_encoder_misses(runner, step)()
    fault = fault_of(raised.value, default_classifier(), engine_id=0)
    assert (fault.request_ids, fault.names_cause) == (named, bool(named))


def test_a_step_that_ends_well_returns_its_result() -> None:
    assert naming_encoder_misses(runner_v1(), lambda scheduled: scheduled)(5) == 5
