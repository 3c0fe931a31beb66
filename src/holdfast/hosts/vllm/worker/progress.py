"""A worker's own progress: each call of its steps, and what finishes their outputs on another thread."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.progress import Lane, ProgressWriter, publish_progress
from holdfast.progress.stacks import answer_for_stacks

Call = Callable[..., Any]


def step_progress(config: HoldfastConfig) -> StepProgress | None:
    """None where nobody watches: then nothing is written either."""
    if not config.stall_detection:
        return None
    answer_for_stacks(config.runtime_dir)
    return StepProgress(publish_progress(config.runtime_dir))


class StepProgress:
    """The record of one rank. Only `execute_model` and its stand-in for an idle rank count as a step."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._steps = ProgressWriter(memory)
        self._outputs = ProgressWriter(memory, Lane.OUTPUTS)
        self._at = (0, 0, 0)

    def recorded(self, phase: Phase, call: Call) -> Call:
        return self._steps.recorded(phase, call, self._begin_step if phase is Phase.FORWARD else self._in_step)

    def finished(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns: an asynchronous output, on the thread that sends it."""
        return self._outputs.recorded(Phase.SAMPLE_END, compute, self._in_step)()

    def _begin_step(self, planned: Any = None, *_: Any) -> tuple[int, int, int]:
        """Tokens and requests by the arguments of a step's first call; none for an idle rank's stand-in."""
        tokens = getattr(planned, "total_num_scheduled_tokens", 0)
        requests = len(planned.num_scheduled_tokens) if tokens else 0
        self._at = (self._at[0] + 1, tokens, requests)
        return self._at

    def _in_step(self, *_: Any) -> tuple[int, int, int]:
        return self._at
