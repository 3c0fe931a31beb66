"""Requests of a chaos run or a test: every feature whose state a fault could damage. Pure data."""

from __future__ import annotations

import itertools
import os

from holdfast.chaos.streams import StreamSpec

LONG = "the old keeper holds the small boat at dawn and counts the bells of the storm. " * 14
SCHEMA = {
    "type": "object",
    "properties": {
        "weather": {"enum": ["storm", "calm", "rain"]},
        "boats": {"type": "array", "items": {"enum": ["red", "blue", "white"]}, "minItems": 6, "maxItems": 8},
        "safe": {"type": "boolean"},
    },
    "required": ["weather", "boats", "safe"],
    "additionalProperties": False,
}
_salts = itertools.count(1)


def fresh_salt() -> str:
    """Return a new cache salt, so that prefix-cache entries of different runs are separate."""
    return f"run-{os.getpid()}-{next(_salts)}"


def every_feature(salt: str, tokens: int = 90) -> list[StreamSpec]:
    """Return requests: greedy, seeded, unseeded, penalties, n=2, logprobs, stop string, JSON schema, shared prefix."""

    def spec(name: str, prompt: str, **options: object) -> StreamSpec:
        return StreamSpec(name, prompt, max_tokens=tokens, cache_salt=salt, **options)  # type: ignore[arg-type]

    return [
        spec("greedy", "The keeper"),
        spec("logprobs", "A storm crosses", logprobs=3),
        spec(
            "penalties",
            "What holds a boat? ",
            temperature=0.9,
            seed=11,
            repetition_penalty=1.2,
            presence_penalty=0.4,
            frequency_penalty=0.3,
            min_tokens=20,
        ),
        spec("pair", "Every word at dawn", temperature=0.8, seed=5, n=2),
        spec("stop", "Once more, the signal", stop=(" b", "zq"), min_tokens=30),
        spec("schema", "Answer in JSON: ", json_schema=SCHEMA, ignore_eos=False),
        spec("shared one", LONG + "first"),
        spec("shared two", LONG + "second"),
        spec("unseeded", "The words of the storm", temperature=1.0, logprobs=0),
        spec("unseeded pair", "Nobody knows", temperature=0.8, top_p=0.9, n=2, logprobs=0),
    ]


def few_tokens(salt: str, tokens: int = 14) -> list[StreamSpec]:
    """Return requests that Triton's interpreter completes within seconds."""
    return [
        StreamSpec("greedy", "The keeper", max_tokens=tokens, cache_salt=salt),
        StreamSpec("seeded", "A storm crosses", max_tokens=tokens, cache_salt=salt, temperature=0.9, seed=7),
        StreamSpec("pair", "Every word", max_tokens=tokens, cache_salt=salt, temperature=0.8, seed=5, n=2),
        StreamSpec("logprobs", "Once more", max_tokens=tokens, cache_salt=salt, logprobs=2),
        StreamSpec("unseeded", "Nobody knows", max_tokens=tokens, cache_salt=salt, temperature=1.0, logprobs=0),
        StreamSpec("long", LONG, max_tokens=tokens, cache_salt=salt),
    ]
