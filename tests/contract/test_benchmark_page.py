"""The page of measured figures says what the documents beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.bench.page import figures_page

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
PATHS = [path for path in FOLDER.glob("*.json") if not path.name.startswith("nightly-")]  # those are rows of tests
DOCUMENTS = {path.name: json.loads(path.read_text()) for path in PATHS}

pytestmark = pytest.mark.skipif(not DOCUMENTS, reason="nothing was measured yet")


def test_the_page_is_written_from_the_documents() -> None:
    """`make figures` writes it."""
    assert (FOLDER / "README.md").read_text() == figures_page(DOCUMENTS)


def test_every_document_is_linked() -> None:
    """None is measured and not shown."""
    page = figures_page(DOCUMENTS)
    assert [name for name in DOCUMENTS if f"]({name})" not in page] == []
