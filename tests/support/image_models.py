"""Pictures, and a small model that reads them, made on the spot: with rotary positions of pictures (M-RoPE)."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

from holdfast.chaos.recipes import DenseRecipe
from holdfast.chaos.vocabulary import END_TOKEN, write_json, write_tokenizer

RECIPE = DenseRecipe(positions=2048)
ROWS = 704  # of the embedding: the vocabulary and the tokens of images
DEVIATION = 0.08
EDGE = 56  # of a picture, in pixels


@functools.cache
def picture_url(number: int) -> str:
    """Return a picture as a data URL: coloured squares, drawn from its number."""
    import numpy as np
    from PIL import Image

    squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize((EDGE, EDGE), Image.Resampling.NEAREST).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def make_mrope(folder: Path) -> Path:
    """Make a PaddleOCR-VL: a token of a picture has a position in time, height and width."""
    from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

    image, start, end = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
    ids = _write_tokenizer(folder, [image, start, end], {"image_token": image})
    text = _text(ids) | {
        "head_dim": RECIPE.head_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": False,
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
    }
    config = PaddleOCRVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids[image],
        vision_start_token_id=ids[start],
        vision_end_token_id=ids[end],
        architectures=["PaddleOCRVLForConditionalGeneration"],
    )
    _save(folder, PaddleOCRVLForConditionalGeneration(config))
    config.torch_dtype = "float32"
    config.save_pretrained(folder)
    write_json(folder / "processor_config.json", {"processor_class": "PaddleOCRVLProcessor"})
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "PaddleOCRVLImageProcessor", "size": size})
    return folder


def _as_published(name: str) -> str:
    """Return the name of a weight as in the published model, which the host's loader expects."""
    for own, published in (("language_model.", "model."), ("visual.", "visual."), ("projector.", "mlp_AR.")):
        if name.startswith(f"model.{own}"):
            return published + name.removeprefix(f"model.{own}")
    return name


def _text(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": ROWS,
        "hidden_size": RECIPE.hidden,
        "intermediate_size": RECIPE.intermediate,
        "num_hidden_layers": RECIPE.layers,
        "num_attention_heads": RECIPE.heads,
        "num_key_value_heads": RECIPE.key_value_heads,
        "max_position_embeddings": RECIPE.positions,
        "initializer_range": DEVIATION,
        "bos_token_id": None,
        "eos_token_id": ids[END_TOKEN],
        "pad_token_id": None,
    }


def _write_tokenizer(folder: Path, added: list[str], named: dict[str, str] | None = None) -> dict[str, int]:
    """Write the tokenizer of the small models with further special tokens; return all ids."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, RECIPE)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(added)
    tokenizer.save(str(path))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", settings | {"extra_special_tokens": named or {}})
    ids: dict[str, int] = tokenizer.get_vocab()
    return ids


def _save(folder: Path, model: Any) -> None:
    """Save random weights for a model, the same at each call."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(RECIPE.seed)
    weights = {
        _as_published(name): torch.randn(weight.shape) * DEVIATION
        if weight.dim() > 1
        else torch.full(weight.shape, float(name.endswith("weight")))
        for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
