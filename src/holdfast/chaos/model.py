"""Makes a small language model on the spot, so that demo, benchmarks and tests download nothing.

Owns the recipe: a byte-level BPE tokenizer trained on generated sentences and a four-layer Llama with seeded random
weights. Its answers are word salad, but varied and reproducible, which is all a comparison token by token needs.
Never imports the host; heavy libraries are imported where they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.core.errors import OperatorError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RECIPE_VERSION = 1
MARKER = "holdfast-model.json"
END_TOKEN = "<|end|>"

WORD_MARK = "\u0120"  # how byte-level BPE writes the space that opens a word

_NOUNS = (
    "river boat keeper engine harbour lantern crew storm signal rope tide word light mast anchor morning chance way "
    "island bridge captain letter window garden mountain station clock kitchen market forest summer winter thread "
    "compass pilot valley shadow mirror ladder bottle candle hammer needle pocket ribbon saddle timber vessel whistle"
)
_VERBS = (
    "carries holds remembers follows repairs watches answers finds loses measures crosses keeps opens paints gathers "
    "borrows catches draws explains forgets guards hears invites joins knows lifts mends notices offers passes reaches"
)
_ADJECTIVES = (
    "small old quiet broken second long early bright careful distant empty faithful gentle hidden iron lucky narrow "
    "open patient rusty silver steady tall useful warm yellow"
)
_ENDINGS = (
    "at dawn|without a sound|before the rain|in good order|once more|as promised|under the stars|by hand|"
    "after midnight|along the shore|between two bells|toward the north|with great care|until the evening"
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model is; its hash stands in the marker file."""

    version: int = RECIPE_VERSION
    seed: int = 20
    vocabulary: int = 672
    hidden: int = 256
    intermediate: int = 512
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


def default_model_folder() -> Path:
    """Where the model is kept between runs: `$XDG_CACHE_HOME/holdfast`, else `~/.cache/holdfast`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "holdfast" / f"small-dense-{Recipe().fingerprint()}"


def make_dense_model(folder: Path, recipe: Recipe | None = None) -> Path:
    """Make the model in `folder` unless it is there already; raises `OperatorError` for a foreign folder."""
    recipe = recipe or Recipe()
    if _is_complete(folder, recipe):
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise OperatorError(f"{folder} holds something else than this model", hint="name an empty or a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_all(draft, recipe)
        _put_in_place(draft, folder, recipe)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _is_complete(folder: Path, recipe: Recipe) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return bool(marker.get("fingerprint") == recipe.fingerprint())


def _put_in_place(draft: Path, folder: Path, recipe: Recipe) -> None:
    """Rename the finished draft; whoever was faster with the same recipe wins."""
    if folder.is_dir() and not _is_complete(folder, recipe):
        shutil.rmtree(folder)
    try:
        os.rename(draft, folder)
    except OSError:
        if not _is_complete(folder, recipe):
            raise


def _write_all(folder: Path, recipe: Recipe) -> None:
    from safetensors.numpy import save_file

    tokens = _write_tokenizer(folder, recipe)
    end_id = tokens.index(END_TOKEN)
    _write_json(folder / "config.json", _config(recipe, end_id))
    _write_json(folder / "generation_config.json", {"eos_token_id": end_id, "do_sample": False})
    save_file(dict(_weights(recipe, tokens)), folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / MARKER, {"fingerprint": recipe.fingerprint(), "recipe": asdict(recipe)})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _sentences(recipe: Recipe, count: int = 6000) -> Iterator[str]:
    draw = random.Random(recipe.seed)
    nouns, verbs, adjectives = _NOUNS.split(), _VERBS.split(), _ADJECTIVES.split()
    for _ in range(count):
        subject, thing = (f"the {draw.choice(adjectives)} {draw.choice(nouns)}" for _ in range(2))
        yield f"{subject} {draw.choice(verbs)} {thing} {draw.choice(_ENDINGS.split('|'))}. "


def _write_tokenizer(folder: Path, recipe: Recipe) -> list[str]:
    """Train and save the tokenizer; returns its tokens by id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(recipe), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(recipe))
    ids: dict[str, int] = tokenizer.get_vocab()
    if len(ids) != recipe.vocabulary:
        raise RuntimeError(f"the sentences yield {len(ids)} tokens, the recipe wants {recipe.vocabulary}")
    return sorted(ids, key=ids.__getitem__)


def _tokenizer_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_TOKEN,
        "model_max_length": recipe.positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _config(recipe: Recipe, end_id: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": recipe.vocabulary,
        "hidden_size": recipe.hidden,
        "intermediate_size": recipe.intermediate,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.key_value_heads,
        "head_dim": recipe.head_size,
        "max_position_embeddings": recipe.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "torch_dtype": "float32",
    }


def _shapes(recipe: Recipe) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights, as the host's loader for Llama expects them."""
    hidden, inner = recipe.hidden, recipe.intermediate
    queries, keys = recipe.heads * recipe.head_size, recipe.key_value_heads * recipe.head_size
    yield "model.embed_tokens.weight", (recipe.vocabulary, hidden)
    for layer in range(recipe.layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{at}.mlp.up_proj.weight", (inner, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (recipe.vocabulary, hidden)


def _weights(recipe: Recipe, tokens: list[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    import numpy as np

    draw = np.random.default_rng(recipe.seed)
    for name, shape in _shapes(recipe):
        if len(shape) == 1:  # norms
            yield name, np.ones(shape, dtype=np.float32)
            continue
        weight = draw.standard_normal(shape, dtype=np.float32) * np.float32(recipe.weight_deviation)
        if name == "lm_head.weight":
            weight *= np.array([_loudness(token, recipe) for token in tokens], dtype=np.float32)[:, None]
        yield name, weight


def _loudness(token: str, recipe: Recipe) -> float:
    """Whole words speak louder than bytes and fragments, so that people can read the answers."""
    is_word = token.startswith(WORD_MARK) and token[1:] in _WORDS
    return 1.0 if is_word else recipe.quiet_row


_WORDS = frozenset(f"{_NOUNS} {_VERBS} {_ADJECTIVES} {_ENDINGS.replace('|', ' ')} the".split())
