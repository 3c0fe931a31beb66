"""Rows of the matrix: a feature, its model, the arguments of its server and its requests."""

from __future__ import annotations

import enum
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.chaos.loads import LONG, SCHEMA
from holdfast.chaos.recipes import DenseRecipe
from holdfast.chaos.streams import MODEL_NAME, StreamSpec
from support.features import models
from support.features.asks import Ask, Asks, Call
from support.image_models import picture_url

TOKENS = 48
TP2 = ("--tensor-parallel-size", "2")
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}  # the host's own endpoints that set state
DP2 = ("--data-parallel-size", "2")


def no_arguments() -> tuple[str, ...]:
    return ()


class Part(enum.Enum):
    """What a step runs beside the model."""

    DRAFT = "draft"
    ENCODER = "encoder"


@dataclass(frozen=True)
class FeatureRow:
    """A feature and how it is served.

    `place` is the engine and rank that faults strike; `decode_after` the steps before a fault in decode. `part` is a
    part beside the model that can fail alone. `prelude` are calls, paths and bodies, that set
    state before the first run. `needs` says what would be needed where answers
    end with an error or a server is refused; `note` is what to know of the host.
    """

    name: str
    asks: Callable[[str], Asks]
    model: models.Maker = models.dense
    arguments: Callable[[], tuple[str, ...]] = no_arguments
    environment: Mapping[str, str] = field(default_factory=dict)
    place: tuple[int, int] = (0, 0)
    ranks: int = 1  # of an engine core
    decode_after: int = 12
    part: Part | None = None
    prelude: Callable[[], Sequence[tuple[str, Mapping[str, Any]]]] = tuple
    needs: str = ""
    note: str = ""


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


# ---- connectors


def connector(name: str, **extra: Any) -> Callable[[], tuple[str, ...]]:
    def arguments() -> tuple[str, ...]:
        made = {key: value() if callable(value) else value for key, value in extra.items()}
        config = {"kv_connector": name, "kv_role": "kv_both", "kv_connector_extra_config": made}
        return ("--kv-transfer-config", json.dumps(config))

    return arguments


# The host copies on GPUs only: for a CPU the copies are those of the tests.
offloading = connector(
    "OffloadingConnector",
    cpu_bytes_to_use=1 << 28,
    spec_name="CpuBuildOffloadingSpec",
    spec_module_path="support.kv_offloading.cpu_offloading",
    offload_prompt_only=False,
)
files = connector("ExampleConnector", shared_storage_path=lambda: tempfile.mkdtemp(prefix="holdfast-kv-"))


# ---- adapters

ADAPTERS = ("one", "two")


def lora_arguments() -> tuple[str, ...]:
    folders = [f"{name}={models.adapter(name, number)}" for number, name in enumerate(ADAPTERS, 1)]
    return ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", *folders)


def load_adapters() -> list[tuple[str, dict[str, Any]]]:
    folders = {name: str(models.adapter(name, number)) for number, name in enumerate(ADAPTERS, 1)}
    loads = [{"lora_name": name, "lora_path": folder} for name, folder in folders.items()]
    return [
        ("/v1/load_lora_adapter", body) for body in (*loads, {"lora_name": "gone", "lora_path": folders["two"]})
    ] + [("/v1/unload_lora_adapter", {"lora_name": "gone"})]


def lora(salt: str) -> list[Ask]:
    return [one for name in ADAPTERS for one in streams(salt, name, f"{name}: ")]


def lora_beside_base(salt: str) -> list[Ask]:
    return [*streams(salt, ADAPTERS[0], "adapter: "), *streams(salt)]


# ---- speculation


def speculation(**config: Any) -> Callable[[], tuple[str, ...]]:
    def arguments() -> tuple[str, ...]:
        made = {key: str(value()) if callable(value) else value for key, value in config.items()}
        return ("--speculative-config", json.dumps({"num_speculative_tokens": 3, **made}))

    return arguments


ngram = speculation(method="ngram", prompt_lookup_max=3, prompt_lookup_min=1)


# ---- structured output


def obeys_schema(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return set(found) == set(SCHEMA["required"]) and 6 <= len(found["boats"]) <= 8


REGEX = r"(storm|calm|rain)( [a-z]{2,6}){8,12}\."
GRAMMAR = 'root ::= "(" item ("," item)* ")"\nitem ::= [a-z] [a-z] | "(" item ")"'


def greedy(salt: str) -> list[Ask]:
    """Return greedy answers only: the host's CPU build samples others beside them when it speculates."""
    prompts = ["The keeper", LONG + "first", "A storm crosses", LONG + "second", "Every word"]
    return [Ask(spec(f"greedy {number}", prompt, salt)) for number, prompt in enumerate(prompts)]


def adapted_structured(salt: str) -> list[Ask]:
    return [*streams(salt, ADAPTERS[0]), *(replace(ask, model=ADAPTERS[0]) for ask in structured(salt))]


# Answers of a random model are white space for long where a schema allows it.
brief = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))


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


# ---- documents


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


# ---- endpoints


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


# ---- pictures


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


# ---- caching and scheduling


def scheduling() -> tuple[str, ...]:
    return (
        *("--scheduling-policy", "priority", "--max-num-batched-tokens", "64", "--block-size", "16"),
        *("--num-gpu-blocks-override", "72", "--long-prefill-token-threshold", "48"),
    )


def scheduled(salt: str) -> list[Ask]:
    """Return more than the cache holds: requests of low priority are preempted."""
    asks = []
    for number, one in enumerate([*streams(salt), *streams(salt + "-other", prefix="other "), *streams(salt)]):
        name = one.spec.name if number < 10 else f"later {one.spec.name}"
        asks.append(replace(one, spec=replace(one.spec, name=name, extra={"priority": number % 3})))
    return asks


# ---- pooling


def pooling_arguments() -> tuple[str, ...]:
    return ("--runner", "pooling", "--convert", "embed")


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


# ---- state set at run time


def reload_weights() -> list[tuple[str, dict[str, Any]]]:
    weights = {"weights_path": str(models.other_dense())}
    return [("/collective_rpc", {"method": "reload_weights", "kwargs": weights}), ("/reset_prefix_cache", {})]


def pause_and_resume() -> list[tuple[str, dict[str, Any]]]:
    return [("/pause", {}), ("/resume", {})]


# ---- architectures


def mamba_caching(mode: str) -> tuple[str, ...]:
    return ("--enable-prefix-caching", "--mamba-cache-mode", mode)


HYBRID = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}

gemma3 = models.of_transformers(
    "gemma3", "gemma3_text", hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, sliding_window=64, sliding_window_pattern=3, max_position_embeddings=4096,
    tie_word_embeddings=True,
)  # fmt: skip
gemma3n = models.of_transformers(
    "gemma3n", "gemma3n_text", hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, sliding_window=64, layer_types=["sliding_attention", "full_attention"] * 3,
    num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 6, laurel_rank=16, hidden_size_per_layer_input=32,
    vocab_size_per_layer_input=DenseRecipe().vocabulary, max_position_embeddings=4096, tie_word_embeddings=True,
)  # fmt: skip
lfm2 = models.of_transformers(
    "lfm2", "lfm2", num_hidden_layers=4, full_attn_idxs=[1, 3], max_position_embeddings=4096, block_ff_dim=256,
    block_auto_adjust_ff_dim=False, tie_embedding=False, tie_word_embeddings=False, **HYBRID,
)  # fmt: skip
jamba = models.of_transformers(
    "jamba", "jamba", num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=1,
    expert_layer_period=2, expert_layer_offset=1, mamba_d_state=16, mamba_dt_rank=8, use_mamba_kernels=False,
    max_position_embeddings=4096, num_experts_per_tok=1, **HYBRID,
)  # fmt: skip
mamba2 = models.of_transformers(
    "mamba2", "mamba2", hidden_size=128, num_hidden_layers=4, state_size=16, num_heads=4, head_dim=64, n_groups=1,
    expand=2, chunk_size=64,
)  # fmt: skip
deepseek = models.of_transformers(
    "deepseek", "deepseek_v2", hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128,
    v_head_dim=128, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1,
    moe_intermediate_size=64, max_position_embeddings=4096, n_group=1, topk_group=1, topk_method="greedy",
    tie_word_embeddings=False,
)  # fmt: skip


def ranks_of(row: FeatureRow, parallel: tuple[str, ...], label: str) -> FeatureRow:
    """Return the same feature on two ranks or two engine cores; faults strike the second."""
    on_ranks = parallel is TP2
    asks = row.asks if on_ranks else lambda salt: [_pinned(ask, n) for n, ask in enumerate(row.asks(salt))]
    return replace(
        row,
        name=f"{row.name}, {label}",
        arguments=lambda: (*parallel, *row.arguments()),
        place=(0, 1) if on_ranks else (1, 0),
        ranks=2 if on_ranks else 1,
        asks=asks,
    )


def _pinned(ask: Ask | Call, number: int) -> Ask | Call:
    assert isinstance(ask, Ask), "calls carry no number of an engine"
    return replace(ask, spec=replace(ask.spec, data_parallel_rank=1 - number % 2))


PLAIN = FeatureRow("plain", plain)
LORA = FeatureRow("LoRA", lora, arguments=lora_arguments)
NGRAM = FeatureRow(
    "n-gram speculation",
    plain,
    arguments=ngram,
    part=Part.DRAFT,
    note="as soon as an answer of a batch is sampled, the rejection sampler of the host's CPU build divides logits by "
    "temperatures that were never written (its expansion kernel writes into a copy)",
)
STRUCTURED = FeatureRow("structured output", structured, arguments=lambda: brief)
GREEDY_SPECULATION = FeatureRow("n-gram speculation, all greedy", greedy, arguments=ngram, part=Part.DRAFT)
ADAPTED_STRUCTURED = FeatureRow(
    "LoRA with structured output", adapted_structured, arguments=lambda: (*lora_arguments(), *brief)
)

ROWS: tuple[FeatureRow, ...] = (
    PLAIN,
    LORA,
    NGRAM,
    STRUCTURED,
    GREEDY_SPECULATION,
    ADAPTED_STRUCTURED,
    FeatureRow(
        "LoRA beside the base model",
        lora_beside_base,
        arguments=lora_arguments,
        note="beside an adapter the host's CPU build gives requests of the base model other logits than alone",
    ),
    FeatureRow("sliding window: Gemma 3", plain, gemma3),
    FeatureRow("KV shared between layers: Gemma 3n", plain, gemma3n),
    FeatureRow(
        "LoRA, loaded and unloaded at run time",
        lora,
        arguments=lambda: ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "3"),
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        prelude=load_adapters,
    ),
    FeatureRow(
        "weights reloaded at run time",
        plain,
        environment=DEV_MODE,
        prelude=lambda: [*reload_weights(), *pause_and_resume()],
    ),
    FeatureRow("documents: prompt logprobs, echo, n, beam search", documents),
    FeatureRow("chat completions, responses, messages", endpoints),
    FeatureRow("priorities, chunked prefill, preemption", scheduled, arguments=scheduling),
    FeatureRow("pooling, embeddings, scoring", pooling, arguments=pooling_arguments, decode_after=0),
    FeatureRow("pictures, M-RoPE: PaddleOCR-VL", pictures, models.pictures, part=Part.ENCODER),
    FeatureRow("KV offloading", plain, arguments=offloading),
    FeatureRow("KV offloading, sliding window", plain, gemma3, arguments=offloading),
    FeatureRow("KV in files", plain, arguments=files),
    FeatureRow("hybrid: LFM2", plain, lfm2),
    FeatureRow("hybrid: Jamba", plain, jamba),
    FeatureRow("Mamba 2", plain, mamba2),
    FeatureRow("Mamba 2, prefix caching", plain, mamba2, arguments=lambda: mamba_caching("all")),
    FeatureRow("hybrid: LFM2, prefix caching", plain, lfm2, arguments=lambda: mamba_caching("align")),
    FeatureRow("MLA: DeepSeek", plain, deepseek),
    FeatureRow("draft model", plain, arguments=speculation(method="draft_model", model=models.draft), part=Part.DRAFT),
    FeatureRow("EAGLE", plain, arguments=speculation(method="eagle", model=models.eagle), part=Part.DRAFT),
    ranks_of(PLAIN, TP2, "tp2"),
    ranks_of(LORA, TP2, "tp2"),
    ranks_of(NGRAM, TP2, "tp2"),
    ranks_of(STRUCTURED, TP2, "tp2"),
    ranks_of(PLAIN, DP2, "dp2"),
    ranks_of(LORA, DP2, "dp2"),
    ranks_of(NGRAM, DP2, "dp2"),
    ranks_of(STRUCTURED, DP2, "dp2"),
)


def row_named(name: str) -> FeatureRow:
    """Return a row by name. Raises `KeyError` for an unknown name."""
    return {row.name: row for row in ROWS}[name]


def cache_folder() -> Path:
    return models.default_model_folder().parent
