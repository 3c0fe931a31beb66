"""The small models: made once, complete or not at all, and never over foreign files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.chaos.model import MARKER, default_model_folder, default_moe_folder, make_dense_model, make_moe_model
from holdfast.chaos.recipes import DenseRecipe, MoeRecipe, Recipe
from holdfast.core.errors import OperatorError

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

Make = Callable[[Path], Path]
BOTH = pytest.mark.parametrize("make", [make_dense_model, make_moe_model])
RECIPES = pytest.mark.parametrize("recipe", [DenseRecipe(), MoeRecipe()], ids=lambda r: r.name)


@BOTH
def test_it_is_made_once(tmp_path: Path, make: Make) -> None:
    """A second call leaves every file as it was."""
    folder = make(tmp_path / "model")
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    make(folder)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", MARKER} <= set(stamps)


@BOTH
def test_two_makings_are_the_same_model(tmp_path: Path, make: Make) -> None:
    """The recipe alone decides the weights."""
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_another_recipe_replaces_the_model(tmp_path: Path) -> None:
    """A model of an older recipe is made anew."""
    folder = make_dense_model(tmp_path / "model", DenseRecipe(layers=1))
    before = (folder / MARKER).read_text()
    make_dense_model(folder, DenseRecipe(layers=2))
    assert (folder / MARKER).read_text() != before


@BOTH
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, make: Make) -> None:
    """Files that are not ours are never removed."""
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(OperatorError, match="does not hold this model"):
        make(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


def test_no_draft_is_left_behind(tmp_path: Path) -> None:
    """Only the model stays in the parent folder."""
    make_dense_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_models_live_in_folders_of_their_own() -> None:
    assert default_model_folder().parent == default_moe_folder().parent
    assert default_model_folder() != default_moe_folder()


def test_both_models_read_text_alike(tmp_path: Path) -> None:
    """A prompt has the same tokens for either, so loads fit both."""
    dense, moe = make_dense_model(tmp_path / "dense"), make_moe_model(tmp_path / "moe")
    assert (dense / "tokenizer.json").read_bytes() == (moe / "tokenizer.json").read_bytes()


def test_the_mixture_of_experts_says_so(tmp_path: Path) -> None:
    """The host tells by the configuration that data-parallel ranks run in lockstep."""
    config = json.loads((make_moe_model(tmp_path / "model") / "config.json").read_text())
    assert (config["model_type"], config["num_experts"], config["num_experts_per_tok"]) == ("qwen3_moe", 8, 2)


@RECIPES
def test_a_model_divides_by_two(recipe: Recipe) -> None:
    """Two ranks share heads, key-value heads, layers and vocabulary evenly."""
    sizes = (recipe.heads, recipe.key_value_heads, recipe.layers, recipe.vocabulary)
    assert [size % 2 for size in sizes] == [0, 0, 0, 0]
