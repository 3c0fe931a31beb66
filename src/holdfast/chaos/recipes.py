"""Recipes of the small models: sizes, the host's configuration, names and shapes of the weights.

Pure data. A recipe determines a model completely; its fingerprint tells whether a folder holds the model.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

RECIPE_VERSION = 1

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Recipe(ABC):
    """The common part of the models: embedding, attention layers, output. Sizes are divisible by two ranks."""

    name: ClassVar[str]

    version: int = RECIPE_VERSION
    seed: int = 20
    vocabulary: int = 672
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    positions: int = 4096
    weight_deviation: float = 0.08
    quiet_row: float = 0.4  # how much weaker the output rows of bytes and fragments are

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def config(self, end_id: int) -> dict[str, Any]:
        """Return the content of `config.json`."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.positions,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": end_id,
            "torch_dtype": "float32",
            **self.own_config(),
        }

    def shapes(self) -> Shapes:
        """Yield names and shapes of the weights, as the host's loader expects them."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield from self._attention(f"{at}.self_attn")
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
            yield from self.feed_forward(f"{at}.mlp")
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def _attention(self, at: str) -> Shapes:
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        yield f"{at}.q_proj.weight", (queries, self.hidden)
        yield f"{at}.k_proj.weight", (keys, self.hidden)
        yield f"{at}.v_proj.weight", (keys, self.hidden)
        yield f"{at}.o_proj.weight", (self.hidden, queries)
        yield from self.attention_norms(at)

    def gated(self, at: str, inner: int) -> Shapes:
        """Yield the weights of a gated feed-forward network."""
        yield f"{at}.gate_proj.weight", (inner, self.hidden)
        yield f"{at}.up_proj.weight", (inner, self.hidden)
        yield f"{at}.down_proj.weight", (self.hidden, inner)

    def attention_norms(self, at: str) -> Shapes:
        """Yield the norms within attention, if the architecture has any."""
        yield from ()

    @abstractmethod
    def own_config(self) -> dict[str, Any]:
        """Return the architecture's additions to `config.json`."""

    @abstractmethod
    def feed_forward(self, at: str) -> Shapes:
        """Yield the weights of a layer's feed-forward part."""


@dataclass(frozen=True)
class DenseRecipe(Recipe):
    """A four-layer Llama."""

    name: ClassVar[str] = "dense"

    intermediate: int = 512

    def own_config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "intermediate_size": self.intermediate,
            "mlp_bias": False,
        }

    def feed_forward(self, at: str) -> Shapes:
        return self.gated(at, self.intermediate)


@dataclass(frozen=True)
class MoeRecipe(Recipe):
    """A four-layer Qwen3-MoE: mixture of experts in every layer, so that data-parallel ranks run in lockstep."""

    name: ClassVar[str] = "moe"

    # Two experts of eight add so little with the dense model's deviation that greedy answers soon repeat one word.
    weight_deviation: float = 0.12
    experts: int = 8
    experts_per_token: int = 2
    expert_intermediate: int = 256  # the CPU's kernel wants multiples of 32, also when halved

    def own_config(self) -> dict[str, Any]:
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "intermediate_size": self.expert_intermediate,
            "moe_intermediate_size": self.expert_intermediate,
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }

    def attention_norms(self, at: str) -> Shapes:
        yield f"{at}.q_norm.weight", (self.head_size,)
        yield f"{at}.k_norm.weight", (self.head_size,)

    def feed_forward(self, at: str) -> Shapes:
        yield f"{at}.gate.weight", (self.experts, self.hidden)
        for expert in range(self.experts):
            yield from self.gated(f"{at}.experts.{expert}", self.expert_intermediate)
