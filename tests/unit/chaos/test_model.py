"""The small model: made once, whole or not at all, and never over somebody else's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.chaos.model import MARKER, Recipe, make_dense_model
from holdfast.core.errors import OperatorError

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")


def test_it_is_made_once(tmp_path: Path) -> None:
    """A second call leaves every file as it was."""
    folder = make_dense_model(tmp_path / "model")
    stamps = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    make_dense_model(folder)
    assert stamps == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", MARKER} <= set(stamps)


def test_two_makings_are_the_same_model(tmp_path: Path) -> None:
    """The recipe alone decides the weights."""
    one, other = make_dense_model(tmp_path / "one"), make_dense_model(tmp_path / "other")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_another_recipe_replaces_the_model(tmp_path: Path) -> None:
    """A model of an older recipe is made anew."""
    folder = make_dense_model(tmp_path / "model", Recipe(layers=1))
    before = (folder / MARKER).read_text()
    make_dense_model(folder, Recipe(layers=2))
    assert (folder / MARKER).read_text() != before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    """Files that are not ours are never removed."""
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(OperatorError, match="something else"):
        make_dense_model(tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


def test_no_draft_is_left_behind(tmp_path: Path) -> None:
    """Only the model stays in the parent folder."""
    make_dense_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
