"""The loads of benchmarks and demo: eight short prompts, or eight long ones.

Pure data. Each run has its own cache salt, so that no run is served from the prefix cache of an earlier run.
"""

from __future__ import annotations

import enum
import itertools
import os
from dataclasses import replace

from holdfast.chaos.streams import StreamSpec

PROMPTS = (
    "The keeper",
    "A storm crosses",
    "What holds a boat in a storm? ",
    "Tell me of the river",
    "Every word at dawn",
    "Once more, the signal",
    "Count the bells: ",
    "The crew",
)
LONG_PROMPT_SENTENCES = 60
# Small enough that a long prompt takes several steps, large enough for all streams to decode in a step.
STEP_TOKENS = 256
SERVER_ARGUMENTS = (
    *("--max-model-len", "2048"),
    *("--max-num-batched-tokens", str(STEP_TOKENS)),
    *("--max-num-seqs", "32"),
)
_runs = itertools.count(1)


class LoadKind(enum.StrEnum):
    """Kinds of prompts."""

    SHORT_PROMPTS = "short-prompts"  # decoding nearly from the start
    LONG_PROMPTS = "long-prompts"  # prompts that are read in several chunks


def make_load(kind: LoadKind, *, streams: int, tokens: int, engines: int = 1) -> list[StreamSpec]:
    """Greedy requests with a fresh cache salt; the same arguments give the same answers.

    Of several engines each gets its share, always the same: what a stream waited can then be told by engine.
    """
    salt = f"{os.getpid()}-{next(_runs)}"
    return [
        StreamSpec(
            f"answer {number + 1}",
            _prompt(kind, number),
            max_tokens=tokens,
            cache_salt=salt,
            data_parallel_rank=number % engines if engines > 1 else None,
        )
        for number in range(streams)
    ]


def poisoned(specs: list[StreamSpec], engine_id: int, name: str) -> list[StreamSpec]:
    """Give the last request of an engine a request id that contains `name`; without a name, change nothing."""
    if not name:
        return specs
    poison = next(spec for spec in reversed(specs) if spec.data_parallel_rank in {None, engine_id})
    return [replace(spec, request_id=name) if spec is poison else spec for spec in specs]


def _prompt(kind: LoadKind, number: int) -> str:
    opening = PROMPTS[number % len(PROMPTS)]
    if number >= len(PROMPTS):  # more streams than prompts: still no two alike
        opening = f"{opening} ({number})"
    if kind is LoadKind.SHORT_PROMPTS:
        return opening
    return opening + " the old keeper holds the small boat at dawn." * LONG_PROMPT_SENTENCES
