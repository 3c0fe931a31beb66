"""Seeded requests whose prompt is read in chunks, on runner V1 on the CPU.

The host samples after each chunk too, throws that token away and winds the request's generator back by its offset,
which a generator on the CPU does not have: the step raises. Here the generator stays out of such a step instead: it
stands where it stood, and the token that nobody sees is drawn without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def sparing_generators(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    """The host's `sample_tokens`, without the generators of requests whose token will be thrown away."""
    generators = runner.input_batch.generators
    spared = {row: generators[row] for row in generators if runner.discard_request_mask.np[row]}
    for row in spared:
        del generators[row]
    try:
        return original(runner, *args, **kwargs)
    finally:
        generators.update(spared)
