"""Requests of the rows: what each feature is asked, in every sampling mode that it has. Pure data."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from holdfast.chaos.loads import LONG, SCHEMA
from holdfast.chaos.streams import MODEL_NAME, StreamSpec
from support.features.asks import Ask, Asks, Call
from support.image_models import picture_url

TOKENS = 48


def spec(name: str, prompt: str, salt: str, **options: Any) -> StreamSpec:
    return StreamSpec(name, prompt, **{"max_tokens": TOKENS, "cache_salt": salt, "logprobs": 0, **options})


def streams(salt: str, model: str = MODEL_NAME, prefix: str = "", **options: Any) -> list[Ask]:
    """Return completions of every sampling mode, short and long."""
    specs = [
        spec(f"{prefix}greedy", "The keeper", salt, **options),
        spec(f"{prefix}greedy long", LONG + "first", salt, **options),
        spec(f"{prefix}seeded", "A storm crosses", salt, temperature=0.9, seed=11, **options),
        spec(f"{prefix}seeded pair", LONG + "second", salt, temperature=0.8, seed=5, n=2, **options),
        spec(f"{prefix}unseeded", "The words of the storm", salt, temperature=1.0, **options),
    ]
    return [Ask(one, model) for one in specs]


def plain(salt: str) -> list[Ask]:
    return streams(salt)


ADAPTERS = ("one", "two")


def lora(salt: str) -> list[Ask]:
    return [one for name in ADAPTERS for one in streams(salt, name, f"{name}: ")]


def lora_beside_base(salt: str) -> list[Ask]:
    return [*streams(salt, ADAPTERS[0], "adapter: "), *streams(salt)]


def greedy(salt: str) -> list[Ask]:
    """Return greedy answers only: the host's CPU build samples others beside them when it speculates."""
    prompts = ["The keeper", LONG + "first", "A storm crosses", LONG + "second", "Every word"]
    return [Ask(spec(f"greedy {number}", prompt, salt)) for number, prompt in enumerate(prompts)]


def obeys_schema(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return set(found) == set(SCHEMA["required"]) and 6 <= len(found["boats"]) <= 8


REGEX = r"(storm|calm|rain)( [a-z]{2,6}){8,12}\."
GRAMMAR = 'root ::= "(" item ("," item)* ")"\nitem ::= [a-z] [a-z] | "(" item ")"'


def obeys_regex(text: str) -> bool:
    return re.fullmatch(REGEX, text) is not None


def structured(salt: str) -> list[Ask]:
    sampled: dict[str, dict[str, Any]] = {
        "greedy": {},
        "seeded": {"temperature": 0.9, "seed": 3},
        "unseeded": {"temperature": 1.0},
    }
    asks = []
    for name, chosen in sampled.items():
        options = {"ignore_eos": False, "max_tokens": 160, **chosen}
        asks.append(Ask(spec(f"{name} schema", "Answer: ", salt, json_schema=SCHEMA, **options), is_valid=obeys_schema))
        regex = {"structured_outputs": {"regex": REGEX}}
        asks.append(Ask(spec(f"{name} regex", "Say: ", salt, extra=regex, **options), is_valid=obeys_regex))
    grammar = {"structured_outputs": {"grammar": GRAMMAR}}
    asks.append(Ask(spec("greedy grammar", "List: ", salt, extra=grammar, ignore_eos=False)))
    return asks


def adapted_structured(salt: str) -> list[Ask]:
    return [*streams(salt, ADAPTERS[0]), *(replace(ask, model=ADAPTERS[0]) for ask in structured(salt))]


def documents(salt: str) -> Asks:
    common = {"model": MODEL_NAME, "max_tokens": TOKENS, "cache_salt": salt, "ignore_eos": True}

    def call(name: str, **body: Any) -> Call:
        return Call(name, "/v1/completions", {**common, "temperature": 0, **body})

    return [
        call("greedy prompt logprobs", prompt="The keeper", prompt_logprobs=2, logprobs=2),
        call("greedy echo", prompt="A storm crosses", echo=True, logprobs=1),
        call("seeded n", prompt="Every word", n=3, temperature=0.8, seed=4, logprobs=1, prompt_logprobs=0),
        call("greedy beam search", prompt="Once more", use_beam_search=True, n=2, max_tokens=24),
        call("greedy many prompts", prompt=["The crew", LONG, "The old boat"], prompt_logprobs=0),
        *streams(salt),
    ]


def endpoints(salt: str) -> Asks:
    said = [{"role": "user", "content": "The keeper holds"}]
    chat = {
        "model": MODEL_NAME, "messages": said, "max_tokens": TOKENS, "stream": True, "cache_salt": salt,
        "ignore_eos": True, "logprobs": True, "top_logprobs": 0, "return_token_ids": True,
    }  # fmt: skip
    responses = {"model": MODEL_NAME, "input": "The storm", "max_output_tokens": TOKENS, "cache_salt": salt}
    messages = {"model": MODEL_NAME, "messages": said, "max_tokens": TOKENS}
    return [
        Call("greedy chat", "/v1/chat/completions", {**chat, "temperature": 0}),
        Call("seeded chat", "/v1/chat/completions", {**chat, "temperature": 0.9, "seed": 8}),
        Call("unseeded chat", "/v1/chat/completions", {**chat, "temperature": 1.0}),
        Call("greedy response", "/v1/responses", {**responses, "temperature": 0, "stream": True}),
        Call("greedy response document", "/v1/responses", {**responses, "temperature": 0}),
        Call("seeded response", "/v1/responses", {**responses, "temperature": 0.9, "seed": 3, "stream": True}),
        Call("greedy message", "/v1/messages", {**messages, "temperature": 0, "stream": True}),
        Call("greedy message document", "/v1/messages", {**messages, "temperature": 0}),
    ]


def pictures(salt: str) -> Asks:
    """Return chats about pictures, one of them shared, beside completions without any."""
    asks: list[Ask | Call] = list(streams(salt))
    for name, number, options in (
        ("greedy picture", 1, {"temperature": 0}),
        ("greedy picture again", 1, {"temperature": 0}),
        ("seeded picture", 2, {"temperature": 0.9, "seed": 8}),
    ):
        # The encoder knows a picture by this name: every run encodes anew.
        shown = {"type": "image_url", "image_url": {"url": picture_url(number)}, "uuid": f"{salt}-{number}"}
        said = [{"role": "user", "content": [shown, {"type": "text", "text": f"{name}: what holds the boat?"}]}]
        chat = {
            "model": MODEL_NAME, "messages": said, "max_tokens": TOKENS, "stream": True, "cache_salt": salt,
            "ignore_eos": True, "logprobs": True, "top_logprobs": 0, "return_token_ids": True, **options,
        }  # fmt: skip
        asks.append(Call(name, "/v1/chat/completions", chat))
    return asks


def scheduled(salt: str) -> list[Ask]:
    """Return more than the cache holds: requests of low priority are preempted."""
    asks = []
    for number, one in enumerate([*streams(salt), *streams(salt + "-other", prefix="other "), *streams(salt)]):
        name = one.spec.name if number < 10 else f"later {one.spec.name}"
        asks.append(replace(one, spec=replace(one.spec, name=name, extra={"priority": number % 3})))
    return asks


def pooling(salt: str) -> Asks:
    long_words = LONG[:900]
    return [
        *(
            Call(f"embedding {n}", "/v1/embeddings", {"model": MODEL_NAME, "input": [f"The keeper {n}", long_words]})
            for n in range(6)
        ),
        Call("pooling", "/pooling", {"model": MODEL_NAME, "input": "A storm crosses", "task": "embed"}),
        Call("score", "/score", {"model": MODEL_NAME, "text_1": "The boat", "text_2": ["The river", long_words]}),
    ]
