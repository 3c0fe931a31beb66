"""Finds logits that are no numbers: NaN or infinite. Present only with `check_logits`.

One flag for each row of logits is computed where they are and copied to the host beside the sampled tokens, without
waiting for it. It is looked at where the host has waited for these tokens anyway: after a synchronous step, or where
an asynchronous output is computed, a step later. So the step path gains a reduction and a small copy, and no
synchronisation. The host's own count (`VLLM_COMPUTE_NANS_IN_LOGITS`) knows no infinite values, and waits in some
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

# What turns hidden states into logits; the second for a part of the vocabulary, its rows in another order.
COMPUTE, COMPUTE_LOCAL = "compute_logits", "compute_logits_local"


@dataclass(frozen=True)
class Flags:
    """Which rows of a step's logits are no numbers; `ordered`: one row for each request, in the batch's order."""

    rows: Any
    ordered: bool


class LogitsCheck:
    """Watches the logits of one worker; on its main thread, but for asynchronous outputs."""

    def __init__(self, runner: Any) -> None:
        self._expects = False  # the first logits of a step are those that are sampled from; more are of prompts
        self._flags: Flags | None = None
        for name in (COMPUTE, COMPUTE_LOCAL):
            compute = getattr(runner.model, name, None)
            if compute is not None:
                setattr(runner.model, name, self._flagging(compute, ordered=name == COMPUTE))

    def watched(self, name: str, step: Step) -> Step:
        """A worker's step method whose logits are looked at."""
        match name:
            case "execute_model":
                return self._begun(step)
            case "sample_tokens":
                return self._ended(step)
        return step

    def _begun(self, step: Step) -> Step:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._expects, self._flags = True, None
            return step(*args, **kwargs)

        return run

    def _ended(self, step: Step) -> Step:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = step(*args, **kwargs)
            flags, self._flags, self._expects = self._flags, None, False
            if flags is None or output is None:
                return output
            if hasattr(output, "get_output"):
                output.get_output = functools.partial(_looked_at, output.get_output, flags)
                return output
            refuse(output, flags)
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
    """Whether each row has what is no number, or nothing that is one; on its way to the host."""
    # The largest is NaN where any is; it is infinite where any is, or where nothing may be sampled at all.
    return logits.amax(dim=-1).isfinite().logical_not().to("cpu", non_blocking=True)


def _looked_at(get_output: Callable[[], Any], flags: Flags) -> Any:
    output = get_output()  # waits for the tokens, which were copied after the flags
    refuse(output, flags)
    return output


def refuse(output: Any, flags: Flags) -> None:
    """Raises `NonFiniteLogits` that names the requests where any row is flagged."""
    rows = flags.rows.tolist()
    if not any(rows):
        return
    requests = list(output.req_ids)
    if flags.ordered and len(rows) == len(requests):
        bad = [request for request, is_bad in zip(requests, rows, strict=True) if is_bad]
    else:
        bad = requests  # of which of them a row is cannot be told
    error = NonFiniteLogits(f"NaN or infinite logits of {len(bad)} of {len(requests)} requests", request_ids=bad)
    error.phase = Phase.SAMPLE_END
    raise error
