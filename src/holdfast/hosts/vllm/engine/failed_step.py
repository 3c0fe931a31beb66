"""A failed step in numbers, for the incident, in the place of the host's dump into the log.

The host formats its whole configuration and the step while requests wait. The owner keeps the configuration with each
incident; of the step a few numbers are taken, which a thread writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from holdfast.core.config import HoldfastConfig
from holdfast.sentinel.beside import Beside
from holdfast.sentinel.incident_files import StallFiles

CAPACITY = 8


def note_failed_step(original: Callable[..., Any], engine: Any, step: Any) -> Any:
    """Return the context in which the host runs a step: without a dump where the engine core is protected."""
    steps: FailedSteps | None = getattr(engine, "holdfast_failed_steps", None)
    return original(engine, step) if steps is None else steps.noted(step)


class FailedSteps:
    """Writer of the failed steps of an engine core, on a thread. A step beyond `CAPACITY` is dropped and counted."""

    def __init__(self, config: HoldfastConfig, engine_id: int) -> None:
        files = StallFiles(config.incident_dir, config.runtime_dir, engine_id)
        self._beside: Beside[dict[str, Any]] = Beside("failed steps", files.keep_step, CAPACITY)

    @contextlib.contextmanager
    def noted(self, step: Any) -> Iterator[None]:
        """Note the step when the block raises."""
        try:
            yield
        except Exception:
            with contextlib.suppress(Exception):
                self._beside.put(numbers_of(step))
            raise


def numbers_of(step: Any) -> dict[str, Any]:
    """Return a step of the host's scheduler in numbers: no ids, no tokens."""
    tokens = sorted(step.num_scheduled_tokens.values(), reverse=True)
    return {
        "at": time.time(),
        "requests": len(tokens),
        "new_requests": len(step.scheduled_new_reqs),
        "tokens": step.total_num_scheduled_tokens,
        "most_tokens_of_a_request": tokens[0] if tokens else 0,
        "drafts": sum(map(len, step.scheduled_spec_decode_tokens.values())),
    }
