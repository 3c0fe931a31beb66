"""Documents agree with the code: settings both ways, paths, links, line length."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from holdfast.api.metrics.catalog import DEFINITIONS
from holdfast.api.metrics.page import metrics_page
from holdfast.cli.serve_flags import flag_groups
from holdfast.cli.settings_page import settings_page
from holdfast.core.config import known_keys
from holdfast.hosts.vllm.contract.versions import TESTED

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SETTINGS = ROOT / "docs" / "reference" / "settings.md"
METRICS = ROOT / "docs" / "reference" / "metrics.md"
MAX_COLUMNS = 100

# Settings that make answers wrong and exist for tests: absent from the help and from the page.
FOR_TESTS_ONLY = {"unsafe_keep_suspect_blocks", "unsafe_send_nan", "unsafe_skip_exit_check", "unsafe_skip_fence"}
# Flags of the original design without a setting behind them.
WITHOUT_SETTING = {"internal_fault_report_port", "shutdown_on_fault_tolerance_failure"}

# A path in backticks that begins in a folder of the repository, or in one of `src/holdfast`.
ROOM = r"(?:src|tests|docs|deploy|scripts|api|bench|chaos|cli|core|hosts|plugin|progress|sentinel|wire)"
PATH = re.compile(rf"`({ROOM}/[\w./*-]*)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def exists(path: str) -> bool:
    """Whether a path, which may be a pattern, matches below the root or below `src/holdfast`."""
    return any(next(base.glob(path.rstrip("/")), None) for base in (ROOT, ROOT / "src" / "holdfast"))


def prose_lines(text: str) -> list[tuple[int, str]]:
    """Number and text of the lines that are no table row; the target of a link counts for nothing."""
    lines = enumerate(text.splitlines(), 1)
    return [(number, LINK.sub("]()", line)) for number, line in lines if not line.lstrip().startswith("|")]


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_of_releases_says_what_the_doctor_says() -> None:
    """The README has a row for each supported release, newest first, that begins with the words of the doctor."""
    readme = (ROOT / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\d[\d.]*) \| (.+?) \|$", readme, re.MULTILINE))
    assert list(rows) == list(reversed(TESTED))
    assert [release for release, words in TESTED.items() if not rows[release].startswith(words)] == []


def test_the_settings_page_is_written_from_the_flags() -> None:
    """`make settings` writes the page."""
    assert SETTINGS.read_text() == settings_page()


def test_every_setting_is_in_the_page() -> None:
    """A setting of the configuration has a row, by the name of its flag."""
    in_page = set(re.findall(r"^\| `--([a-z-]+)` \|", SETTINGS.read_text(), re.MULTILINE))
    assert {key.replace("_", "-") for key in known_keys() if key not in FOR_TESTS_ONLY} - in_page == set()


def test_every_entry_of_the_page_exists() -> None:
    """A row of the page is a setting, or a flag that is accepted for compatibility."""
    rows = re.findall(r"^\| `--([a-z-]+)` \|", SETTINGS.read_text(), re.MULTILINE)
    assert {row.replace("-", "_") for row in rows} - set(known_keys()) == WITHOUT_SETTING
    assert len(rows) == len(set(rows)) == sum(len(flags) for flags in flag_groups().values())


def test_the_metrics_page_is_written_from_the_catalog() -> None:
    """`make metrics` writes the page; each metric has one row, and each row is a metric."""
    page = METRICS.read_text()
    assert page == metrics_page()
    rows = re.findall(r"^\| `((?:holdfast_|vllm:)\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(d.sample for d in DEFINITIONS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_lines_are_at_most_a_hundred_columns(document: Path) -> None:
    """Tables and the targets of links excepted."""
    assert [number for number, line in prose_lines(document.read_text()) if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    """A path begins at the root of the repository or in `src/holdfast`."""
    named = set(PATH.findall(document.read_text()))
    assert sorted(path for path in named if not exists(path)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=names(DOCUMENTS))
def test_every_link_leads_somewhere(document: Path) -> None:
    """A relative link names a file that exists, and a heading of that file."""
    broken = []
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_document_is_in_the_index() -> None:
    """docs/README.md links to every document of the repository."""
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text())}
    assert names([document for document in DOCUMENTS if document not in linked | {index}]) == []
