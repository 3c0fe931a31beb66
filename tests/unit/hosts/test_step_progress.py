"""The progress record of a worker: written with stall detection only."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.steps import BatchShape
from holdfast.hosts.vllm.process.step_progress import WorkerProgress, worker_progress
from holdfast.progress import Lane, ProgressReader
from holdfast.progress.record import RECORD_BYTES

PLANNED = SimpleNamespace(total_num_scheduled_tokens=9, num_scheduled_tokens={"a": 8, "b": 1})


def test_without_stall_detection_nothing_is_recorded(tmp_path: Path) -> None:
    assert worker_progress(HoldfastConfig(runtime_dir=str(tmp_path), stall_detection=False)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_running_step_is_recorded_with_the_size_of_its_batch() -> None:
    memory = bytearray(RECORD_BYTES)
    progress, reader = WorkerProgress(memory), ProgressReader(memory)
    step = progress.recorded(Phase.FORWARD, lambda planned: reader.look().running)
    [running] = step(PLANNED)
    assert (running.step, running.phase, running.shape) == (1, Phase.FORWARD, BatchShape(9, 2))
    assert reader.look().running == ()


def test_the_duration_of_a_step_that_raised_is_not_typical() -> None:
    """The step waited for a hung peer until the collective was broken."""
    memory = bytearray(RECORD_BYTES)
    progress, reader = WorkerProgress(memory), ProgressReader(memory)
    step = progress.recorded(Phase.FORWARD, lambda planned, fails: 1 / (not fails))
    step(PLANNED, False)
    step(PLANNED, False)
    with pytest.raises(ZeroDivisionError):
        step(PLANNED, True)
    seen = reader.look()
    assert seen.running == ()
    assert [ended.is_typical for ended in seen.ended] == [False, True, False]


def test_sampling_and_output_belong_to_the_step() -> None:
    memory = bytearray(RECORD_BYTES)
    progress, reader = WorkerProgress(memory), ProgressReader(memory)
    progress.recorded(Phase.FORWARD, lambda planned: None)(PLANNED)
    [sampling] = progress.recorded(Phase.SAMPLE_START, lambda grammar: reader.look().running)(None)
    [finishing] = progress.finished(lambda: reader.look().running)
    assert (sampling.step, finishing.step) == (1, 1)
    assert (sampling.lane, finishing.lane) == (Lane.MAIN, Lane.OUTPUTS)
