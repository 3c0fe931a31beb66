"""Progress records of an engine core and of a worker, read from outside by the stall watch.

A record costs plain stores into memory mapped beforehand. Without stall detection nothing is recorded.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.progress import Lane, ProgressWriter, publish_progress
from holdfast.progress.stacks import answer_for_stacks

Call = Callable[..., Any]


# ---- an engine core


def record_engine_progress(engine: Any, config: HoldfastConfig) -> None:
    """Record where the busy loop computes, but not where the loop waits for workers or peers.

    Wraps methods of the host on the instance. Call after fault injection is armed, so that an injected fault counts
    as the host's own.
    """
    if not config.stall_detection:
        return
    answer_for_stacks(config.runtime_dir)
    writer, scheduler = ProgressWriter(publish_progress(config.runtime_dir)), engine.scheduler
    at = _EngineStep(scheduler)
    recorded = writer.recorded
    scheduler.schedule = recorded(Phase.SCHEDULE_START, scheduler.schedule, at.next_step)
    scheduler.update_from_output = recorded(Phase.OUTPUT_START, scheduler.update_from_output, at.this_step)
    engine._attach_iteration_details = recorded(Phase.OUTPUT_END, engine._attach_iteration_details, at.this_step)


class _EngineStep:
    """The step that an engine core is at, with the number of open requests as its size."""

    def __init__(self, scheduler: Any) -> None:
        self._requests = scheduler.requests
        self._step = 0

    def next_step(self, *_: Any) -> tuple[int, int, int]:
        self._step += 1
        return self.this_step()

    def this_step(self, *_: Any) -> tuple[int, int, int]:
        open_requests = len(self._requests)
        return self._step, open_requests, open_requests


# ---- a worker


def worker_progress(config: HoldfastConfig) -> WorkerProgress | None:
    """Publish the progress record of the process; None without stall detection."""
    if not config.stall_detection:
        return None
    answer_for_stacks(config.runtime_dir)
    return WorkerProgress(publish_progress(config.runtime_dir))


class WorkerProgress:
    """The progress record of a rank. Only `execute_model` and `execute_dummy_batch` begin a step."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self._steps = ProgressWriter(memory)
        self._outputs = ProgressWriter(memory, Lane.OUTPUTS)
        self._at = (0, 0, 0)

    def recorded(self, phase: Phase, call: Call) -> Call:
        """Wrap a step method so that each call is recorded."""
        return self._steps.recorded(phase, call, self._begin_step if phase is Phase.FORWARD else self._in_step)

    def finished(self, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute`, an asynchronous output, recorded on the thread that sends the output."""
        return self._outputs.recorded(Phase.SAMPLE_END, compute, self._in_step)()

    def _begin_step(self, planned: Any = None, *_: Any) -> tuple[int, int, int]:
        """Return step, tokens and requests from the arguments of `execute_model`; no tokens for a dummy batch."""
        tokens = getattr(planned, "total_num_scheduled_tokens", 0)
        requests = len(planned.num_scheduled_tokens) if tokens else 0
        self._at = (self._at[0] + 1, tokens, requests)
        return self._at

    def _in_step(self, *_: Any) -> tuple[int, int, int]:
        return self._at
