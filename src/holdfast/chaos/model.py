"""Makes small language models on the spot, so that demo, benchmarks and tests download nothing.

Owns the folders: each is made once, complete or not at all. A recipe describes the model; the weights are drawn from a
seed. Answers are random words, but varied and reproducible, as a comparison token by token requires. Never imports the
host; heavy libraries are imported where they are used.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.chaos.recipes import DenseRecipe, MoeRecipe, Recipe
from holdfast.chaos.vocabulary import END_TOKEN, is_word, write_json, write_tokenizer
from holdfast.core.errors import OperatorError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MARKER = "holdfast-model.json"


def default_model_folder() -> Path:
    """Return the folder of the dense model: `$XDG_CACHE_HOME/holdfast`, else `~/.cache/holdfast`."""
    return _default_folder(DenseRecipe())


def default_moe_folder() -> Path:
    """Return the folder of the mixture-of-experts model, beside the dense model."""
    return _default_folder(MoeRecipe())


def make_dense_model(folder: Path, recipe: DenseRecipe | None = None) -> Path:
    """Make a dense model in `folder` unless it exists; raise `OperatorError` for a foreign folder."""
    return _make_model(folder, recipe or DenseRecipe())


def make_moe_model(folder: Path, recipe: MoeRecipe | None = None) -> Path:
    """Make a mixture of experts in `folder` unless it exists; raise `OperatorError` for a foreign folder."""
    return _make_model(folder, recipe or MoeRecipe())


def _default_folder(recipe: Recipe) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "holdfast" / f"small-{recipe.name}-{recipe.fingerprint()}"


def _make_model(folder: Path, recipe: Recipe) -> Path:
    if _is_complete(folder, recipe):
        return folder
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise OperatorError(f"{folder} does not hold this model", hint="choose an empty or new folder")
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
    """Rename the finished draft; a faster process with the same recipe wins."""
    if folder.is_dir() and not _is_complete(folder, recipe):
        shutil.rmtree(folder)
    try:
        os.rename(draft, folder)
    except OSError:
        if not _is_complete(folder, recipe):
            raise


def _write_all(folder: Path, recipe: Recipe) -> None:
    from safetensors.numpy import save_file

    tokens = write_tokenizer(folder, recipe)
    end_id = tokens.index(END_TOKEN)
    write_json(folder / "config.json", recipe.config(end_id))
    write_json(folder / "generation_config.json", {"eos_token_id": end_id, "do_sample": False})
    save_file(dict(_weights(recipe, tokens)), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / MARKER, {"fingerprint": recipe.fingerprint(), "recipe": asdict(recipe)})


def _weights(recipe: Recipe, tokens: list[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    import numpy as np

    draw = np.random.default_rng(recipe.seed)
    for name, shape in recipe.shapes():
        if len(shape) == 1:  # norms
            yield name, np.ones(shape, dtype=np.float32)
            continue
        weight = draw.standard_normal(shape, dtype=np.float32) * np.float32(recipe.weight_deviation)
        if name == "lm_head.weight":
            weight *= np.array([_loudness(token, recipe) for token in tokens], dtype=np.float32)[:, None]
        yield name, weight


def _loudness(token: str, recipe: Recipe) -> float:
    """Return the weight of a token's output row: whole words are more likely than fragments, for readable answers."""
    return 1.0 if is_word(token) else recipe.quiet_row
