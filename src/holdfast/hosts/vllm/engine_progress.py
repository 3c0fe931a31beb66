"""An engine core's own progress: where its busy loop computes, not where it waits for its workers or its peers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.core.faults import Phase
from holdfast.progress import ProgressWriter, publish_progress
from holdfast.progress.stacks import answer_for_stacks

Call = Callable[..., Any]


def record_progress(engine: Any, folder: str) -> None:
    """Instance attributes over the host's methods; after injection, so that what is injected counts as theirs."""
    answer_for_stacks(folder)
    progress = _EngineProgress(ProgressWriter(publish_progress(folder)), engine.scheduler)
    scheduler = engine.scheduler
    scheduler.schedule = progress.recorded(Phase.SCHEDULE_START, scheduler.schedule)
    scheduler.update_from_output = progress.recorded(Phase.OUTPUT_START, scheduler.update_from_output)
    engine._attach_iteration_details = progress.recorded(Phase.OUTPUT_END, engine._attach_iteration_details)


class _EngineProgress:
    def __init__(self, writer: ProgressWriter, scheduler: Any) -> None:
        self._writer = writer
        self._requests = scheduler.requests
        self._step = 0

    def recorded(self, phase: Phase, call: Call) -> Call:
        counts = phase is Phase.SCHEDULE_START

        def run(*args: Any, **kwargs: Any) -> Any:
            self._step += counts
            open_requests = len(self._requests)
            self._writer.begin(phase, self._step, open_requests, open_requests)
            try:
                return call(*args, **kwargs)
            finally:
                self._writer.end()

        return run
