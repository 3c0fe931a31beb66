"""Tiny models of the rows, made on the spot and kept by what they are made of.

The weights are drawn from a seed. Heavy libraries are imported where they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from holdfast.chaos.model import default_model_folder, make_dense_model
from holdfast.chaos.recipes import DenseRecipe
from holdfast.chaos.vocabulary import END_TOKEN, write_json, write_tokenizer
from support.image_models import make_mrope

VERSION = 1
Maker = Callable[[], Path]


def dense() -> Path:
    return make_dense_model(default_model_folder())


def draft() -> Path:
    """Return a smaller dense model with the same tokenizer."""
    recipe = replace(DenseRecipe(), layers=1, seed=21)
    return make_dense_model(default_model_folder().with_name(f"small-draft-{recipe.fingerprint()}"), recipe)


def other_dense() -> Path:
    """Return the same model with other weights."""
    recipe = replace(DenseRecipe(), seed=23)
    return make_dense_model(default_model_folder().with_name(f"small-other-{recipe.fingerprint()}"), recipe)


def _kept(name: str, content: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Return the folder of a model, written unless it exists; of two writers the first one wins."""
    digest = hashlib.sha256(json.dumps([VERSION, content], sort_keys=True).encode()).hexdigest()[:16]
    folder = default_model_folder().with_name(f"feature-{name}-{digest}")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write(made)
            os.rename(made, folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def of_transformers(name: str, model_type: str, auto: str = "AutoModelForCausalLM", **config: Any) -> Maker:
    """Return the maker of a model of the `transformers` library, with the small models' vocabulary."""

    def write(folder: Path) -> None:
        import torch
        import transformers

        recipe = DenseRecipe()
        end = write_tokenizer(folder, recipe).index(END_TOKEN)
        made = transformers.AutoConfig.for_model(
            model_type,
            vocab_size=recipe.vocabulary,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
            torch_dtype="float32",
            **config,
        )
        torch.manual_seed(recipe.seed)
        model = getattr(transformers, auto).from_config(made)
        _spread_weights(model, recipe.weight_deviation)
        model.save_pretrained(folder)
        write_json(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})

    return lambda: _kept(name, {"type": model_type, "auto": auto, **config}, write)


def _spread_weights(model: Any, deviation: float) -> None:
    """Widen matrices that the library draws so narrowly that an answer would repeat one word."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed_tokens" not in name and "A_log" not in name:
                weight.normal_(0.0, deviation)


def pictures() -> Path:
    """Return the folder of a model that reads pictures."""
    return _kept("pictures", {"of": "PaddleOCR-VL", "version": 1}, make_mrope)


def adapter(name: str, seed: int, rank: int = 8) -> Path:
    """Return the folder of a LoRA adapter of the dense model."""
    recipe = DenseRecipe()

    def write(folder: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        draw = np.random.default_rng(seed)
        outputs = {"q_proj": recipe.heads * recipe.head_size, "v_proj": recipe.key_value_heads * recipe.head_size}
        weights = {}
        for layer in range(recipe.layers):
            for module, size in outputs.items():
                at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                for part, shape in (("A", (rank, recipe.hidden)), ("B", (size, rank))):
                    drawn = draw.standard_normal(shape, dtype=np.float32) * np.float32(0.2)
                    weights[f"{at}.lora_{part}.weight"] = drawn
        save_file(weights, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(outputs), "bias": "none"}
        write_json(folder / "adapter_config.json", config)

    return _kept(f"adapter-{name}", {"seed": seed, "rank": rank, "of": recipe.fingerprint()}, write)


def eagle() -> Path:
    """Return the folder of an EAGLE head for the dense model."""
    recipe = replace(DenseRecipe(), layers=1, seed=22)

    def write(folder: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        end = write_tokenizer(folder, recipe).index(END_TOKEN)
        config = recipe.config(end) | {"architectures": ["LlamaForCausalLM"]}
        write_json(folder / "config.json", config)
        draw = np.random.default_rng(recipe.seed)
        shapes = {name.removeprefix("model."): shape for name, shape in recipe.shapes() if ".layers." in name}
        shapes["fc.weight"] = (recipe.hidden, 2 * recipe.hidden)
        weights = {
            name: np.ones(shape, dtype=np.float32)
            if len(shape) == 1
            else draw.standard_normal(shape, dtype=np.float32) * np.float32(recipe.weight_deviation)
            for name, shape in shapes.items()
            if name != "layers.0.input_layernorm.weight"
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return _kept("eagle", {"of": recipe.fingerprint()}, write)
