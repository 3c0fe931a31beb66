"""Detect non-finite logits (NaN or Inf). Present only with `check_logits`.

Each row of logits is reduced to a flag where the logits are, and the flags are copied to the host beside the sampled
tokens, without waiting. The flags are read where the host has waited for the tokens anyway: after a synchronous step,
or where an asynchronous output is computed, a step later. So the step path gains a reduction and a small copy, and no
synchronisation. The host's own count (`VLLM_COMPUTE_NANS_IN_LOGITS`) ignores infinite values, and waits in some
releases.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.core.errors import NonFiniteLogits
from holdfast.core.faults.faults import Phase

logger = logging.getLogger("holdfast")

Step = Callable[..., Any]

# Methods that turn hidden states into logits; the second for a part of the vocabulary, with rows in another order.
COMPUTE, COMPUTE_LOCAL = "compute_logits", "compute_logits_local"


@dataclass(frozen=True)
class Flags:
    """Flags of the non-finite rows of a step; `ordered`: one row for each request, in the order of the batch."""

    rows: Any
    ordered: bool


class NonFiniteLogitsDetector:
    """Checks the logits of a worker. Main thread, except for asynchronous outputs."""

    def __init__(self, runner: Any) -> None:
        self._expects = False  # the first logits of a step are sampled from; later logits are of prompts
        self._flags: Flags | None = None
        for name in (COMPUTE, COMPUTE_LOCAL):
            compute = getattr(runner.model, name, None)
            if compute is not None:
                setattr(runner.model, name, self._flagging(compute, ordered=name == COMPUTE))

    def checked(self, name: str, step: Step) -> Step:
        """Wrap a worker's step method with the check; methods without logits stay as they are."""
        match name:
            case "execute_model":
                return self._begin(step)
            case "sample_tokens":
                return self._end(step)
        return step

    def _begin(self, step: Step) -> Step:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._expects, self._flags = True, None
            return step(*args, **kwargs)

        return run

    def _end(self, step: Step) -> Step:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            flags, self._flags, self._expects = self._flags, None, False
            if flags is None or output is None:
                return output
            if hasattr(output, "get_output"):
                output.get_output = functools.partial(_checked_output, output.get_output, flags)
                return output
            raise_if_flagged(output, flags)
            return output

        return run

    def _flagging(self, compute: Step, *, ordered: bool) -> Step:
        def run(*args: Any, **kwargs: Any) -> Any:
            logits = compute(*args, **kwargs)
            if self._expects and logits is not None:
                self._expects = False
                self._flags = Flags(flag_rows(logits), ordered)
            return logits

        return run


def flag_rows(logits: Any) -> Any:
    """Flag each row that has a NaN or +Inf, or nothing but -Inf. The flags are on the way to the host on return."""
    # The maximum is NaN where any value is; infinite where any value is +Inf, or where nothing may be sampled at all.
    return logits.amax(dim=-1).isfinite().logical_not().to("cpu", non_blocking=True)


def _checked_output(get_output: Callable[[], Any], flags: Flags) -> Any:
    output = get_output()  # waits for the tokens, which were copied after the flags
    raise_if_flagged(output, flags)
    return output


def raise_if_flagged(output: Any, flags: Flags) -> None:
    """Raise `NonFiniteLogits` with the affected requests if any row is flagged."""
    rows = flags.rows.tolist()
    if not any(rows):
        return
    requests = list(output.req_ids)
    if flags.ordered and len(rows) == len(requests):
        bad = [request for request, is_bad in zip(requests, rows, strict=True) if is_bad]
    else:
        bad = requests  # the rows cannot be assigned to requests
    error = NonFiniteLogits(f"NaN or infinite logits of {len(bad)} of {len(requests)} requests", request_ids=bad)
    error.phase = Phase.SAMPLE_END
    raise error
