"""The failure model prints the matrix of features and faults as the nightly rows say."""

from __future__ import annotations

import json
from pathlib import Path

from support.features.page import ALL_ROWS, BEGIN, END, records_of, section
from support.features.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = json.loads((ROOT / "docs" / "benchmarks" / "nightly-features.json").read_text())


def test_the_section_is_written_from_the_rows() -> None:
    """`make features` writes the section."""
    page = (ROOT / "docs" / "failure-model.md").read_text()
    assert page[page.index(BEGIN) : page.index(END) + len(END)] == section(DOCUMENT)


def test_every_row_of_the_document_is_a_row_of_the_matrix() -> None:
    assert set(records_of(DOCUMENT)) - {row.name for row in ROWS} == set()
    assert len({row.name for row in ROWS} | {ALL_ROWS}) == len(ROWS) + 1
