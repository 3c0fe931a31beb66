"""A failed step leaves numbers with its incident, and no dump in the log."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.engine.failed_step import FailedSteps, note_failed_step

STEP = SimpleNamespace(
    num_scheduled_tokens={"a request": 1, "another": 7},
    scheduled_new_reqs=["a prompt"],
    total_num_scheduled_tokens=8,
    scheduled_spec_decode_tokens={"a request": [1, 2]},
)


def test_a_failed_step_is_kept_in_numbers_and_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = HoldfastConfig(incident_dir=str(tmp_path / "incidents"), runtime_dir=str(tmp_path))
    engine = SimpleNamespace(holdfast_failed_steps=FailedSteps(config, 0))
    with note_failed_step(pytest.fail, engine, STEP):
        pass
    with pytest.raises(ValueError, match="boom"), note_failed_step(pytest.fail, engine, STEP):
        raise ValueError("boom")
    with pytest.raises(ValueError, match="boom"), note_failed_step(pytest.fail, engine, object()):
        raise ValueError("boom")  # a step that is not understood costs its numbers
    assert engine.holdfast_failed_steps._beside.flush(5.0)
    [written] = (tmp_path / "incidents" / "evidence").glob(f"{tmp_path.name}-engine0-failed-step-*/step.json")
    told = json.loads(written.read_text())
    assert (told["requests"], told["new_requests"], told["tokens"], told["drafts"]) == (2, 1, 8, 2)
    assert "request" not in "".join(map(str, told.values())) and caplog.records == []


def test_an_unprotected_engine_core_dumps_as_the_host_does() -> None:
    assert note_failed_step(lambda engine, step: "the host's", SimpleNamespace(), STEP) == "the host's"
