"""Rows of the matrix: a feature, its model, the arguments of its server and its requests."""

from __future__ import annotations

import enum
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from holdfast.chaos.recipes import DenseRecipe
from support.features import loads, models
from support.features.asks import Ask, Asks, Call
from support.features.loads import ADAPTERS

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


def lora_arguments() -> tuple[str, ...]:
    folders = [f"{name}={models.adapter(name, number)}" for number, name in enumerate(ADAPTERS, 1)]
    return ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", *folders)


def load_adapters() -> list[tuple[str, dict[str, Any]]]:
    folders = {name: str(models.adapter(name, number)) for number, name in enumerate(ADAPTERS, 1)}
    loads = [{"lora_name": name, "lora_path": folder} for name, folder in folders.items()]
    return [
        ("/v1/load_lora_adapter", body) for body in (*loads, {"lora_name": "gone", "lora_path": folders["two"]})
    ] + [("/v1/unload_lora_adapter", {"lora_name": "gone"})]


def speculation(**config: Any) -> Callable[[], tuple[str, ...]]:
    def arguments() -> tuple[str, ...]:
        made = {key: str(value()) if callable(value) else value for key, value in config.items()}
        return ("--speculative-config", json.dumps({"num_speculative_tokens": 3, **made}))

    return arguments


draft_model = speculation(method="draft_model", model=models.draft)
ngram = speculation(method="ngram", prompt_lookup_max=3, prompt_lookup_min=1)


# Answers of a random model are white space for long where a schema allows it.
brief = ("--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}))


def scheduling() -> tuple[str, ...]:
    return (
        *("--scheduling-policy", "priority", "--max-num-batched-tokens", "64", "--block-size", "32"),
        *("--num-gpu-blocks-override", "36", "--long-prefill-token-threshold", "48", "--max-model-len", "1024"),
    )


def pooling_arguments() -> tuple[str, ...]:
    return ("--runner", "pooling", "--convert", "embed")


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
    block_auto_adjust_ff_dim=False, conv_dim=128, block_dim=128, tie_embedding=False,
    tie_word_embeddings=False, **HYBRID,
)  # fmt: skip
granite4 = models.of_transformers(
    "granite4", "granitemoehybrid", hidden_size=256, intermediate_size=256, shared_intermediate_size=256,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    layer_types=["mamba", "attention", "mamba", "attention"], mamba_n_heads=8, mamba_d_head=64, mamba_d_state=64,
    mamba_n_groups=1, mamba_expand=2, mamba_chunk_size=64, num_local_experts=0, num_experts_per_tok=0,
    position_embedding_type=None, tie_word_embeddings=False,
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


PLAIN = FeatureRow("plain", loads.plain)
LORA = FeatureRow("LoRA", loads.lora, arguments=lora_arguments)
NGRAM = FeatureRow(
    "n-gram speculation",
    loads.plain,
    arguments=ngram,
    part=Part.DRAFT,
    note="where an answer of a batch is sampled, greedy tokens were not the likeliest, without a fault too; probable "
    "cause: the expansion kernel of the host's CPU build writes temperatures into a copy",
)
STRUCTURED = FeatureRow("structured output", loads.structured, arguments=lambda: brief)
GREEDY_SPECULATION = FeatureRow("n-gram speculation, all greedy", loads.greedy, arguments=ngram, part=Part.DRAFT)
ADAPTED_STRUCTURED = FeatureRow(
    "LoRA with structured output", loads.adapted_structured, arguments=lambda: (*lora_arguments(), *brief)
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
        loads.lora_beside_base,
        arguments=lora_arguments,
        note="beside an adapter, requests of the base model had other logits than alone, without a fault too",
    ),
    FeatureRow("sliding window: Gemma 3", loads.plain, gemma3),
    FeatureRow("KV shared between layers: Gemma 3n", loads.plain, gemma3n),
    FeatureRow(
        "LoRA, loaded and unloaded at run time",
        loads.lora,
        arguments=lambda: ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "3"),
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        prelude=load_adapters,
    ),
    FeatureRow(
        "weights reloaded at run time",
        loads.plain,
        environment=DEV_MODE,
        prelude=lambda: [*reload_weights(), *pause_and_resume()],
    ),
    FeatureRow("documents: prompt logprobs, echo, n, beam search", loads.documents),
    FeatureRow("chat completions, responses, messages", loads.endpoints),
    FeatureRow("priorities, chunked prefill, preemption", loads.scheduled, arguments=scheduling),
    FeatureRow("pooling, embeddings, scoring", loads.pooling, arguments=pooling_arguments, decode_after=0),
    FeatureRow("pictures, M-RoPE: PaddleOCR-VL", loads.pictures, models.pictures, part=Part.ENCODER),
    FeatureRow("KV offloading", loads.plain, arguments=offloading),
    FeatureRow("KV offloading, sliding window", loads.plain, gemma3, arguments=offloading),
    FeatureRow("KV in files", loads.plain, arguments=files),
    FeatureRow("hybrid: LFM2", loads.plain, lfm2),
    FeatureRow("hybrid: Granite 4", loads.plain, granite4),
    FeatureRow("hybrid: Jamba", loads.plain, jamba),
    FeatureRow("Mamba 2", loads.plain, mamba2),
    FeatureRow("Mamba 2, prefix caching", loads.plain, mamba2, arguments=lambda: mamba_caching("align")),
    FeatureRow("hybrid: LFM2, prefix caching", loads.plain, lfm2, arguments=lambda: mamba_caching("align")),
    FeatureRow("hybrid: Granite 4, prefix caching", loads.plain, granite4, arguments=lambda: mamba_caching("align")),
    FeatureRow("MLA: DeepSeek", loads.plain, deepseek),
    FeatureRow(
        "draft model", loads.plain, arguments=speculation(method="draft_model", model=models.draft), part=Part.DRAFT
    ),
    FeatureRow("EAGLE", loads.plain, arguments=speculation(method="eagle", model=models.eagle), part=Part.DRAFT),
    FeatureRow("sleep and wake", loads.plain, arguments=lambda: ("--enable-sleep-mode",)),
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
