"""An engine core's own progress: where its busy loop computes, not where it waits for its workers or its peers."""

from __future__ import annotations

from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.core.faults.faults import Phase
from holdfast.progress import ProgressWriter, publish_progress
from holdfast.progress.stacks import answer_for_stacks


def record_progress(engine: Any, config: HoldfastConfig) -> None:
    """Instance attributes over the host's methods; after injection, so that what is injected counts as theirs.

    Nothing where nobody watches.
    """
    if not config.stall_detection:
        return
    answer_for_stacks(config.runtime_dir)
    writer, scheduler = ProgressWriter(publish_progress(config.runtime_dir)), engine.scheduler
    at = _At(scheduler)
    recorded = writer.recorded
    scheduler.schedule = recorded(Phase.SCHEDULE_START, scheduler.schedule, at.next_step)
    scheduler.update_from_output = recorded(Phase.OUTPUT_START, scheduler.update_from_output, at.this_step)
    engine._attach_iteration_details = recorded(Phase.OUTPUT_END, engine._attach_iteration_details, at.this_step)


class _At:
    """The step that an engine core is at, and how many requests are open in it."""

    def __init__(self, scheduler: Any) -> None:
        self._requests = scheduler.requests
        self._step = 0

    def next_step(self, *_: Any) -> tuple[int, int, int]:
        self._step += 1
        return self.this_step()

    def this_step(self, *_: Any) -> tuple[int, int, int]:
        open_requests = len(self._requests)
        return self._step, open_requests, open_requests
