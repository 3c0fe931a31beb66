"""The matrix as a section of the failure model, from the rows that `make nightly PART=features` left. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from support.features.asks import Mode
from support.features.columns import Column
from support.features.rows import ROWS, FeatureRow
from support.features.verdicts import Result

BEGIN, END = "<!-- features: begin -->", "<!-- features: end -->"
ALL_ROWS = "all rows"
EXACT_SHARE = 0.9
TIMES_THE_PLAIN_ROW = 3.0
SHORT = {
    Result.EXACT: "exact",
    Result.BY_ORACLE: "oracle",
    Result.ENDS_ALONE: "error",
    Result.REFUSED: "refused",
    Result.HOST_FAILS: "vLLM fails",
    Result.BROKEN: "**broken**",
}
Records = Mapping[str, Mapping[str, Any]]  # by row


def records_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the records of the document's rows by name; rows that left none count as not run."""
    details = {row["item"]: row["detail"] for row in document["rows"] if row["item"] != ALL_ROWS}
    return {item: json.loads(detail) for item, detail in details.items() if detail.startswith("{")}


def cells_of(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for column, modes in record["cells"].items():
        for mode, cell in modes.items():
            yield column, mode, cell


def section(document: Mapping[str, Any], rows: Sequence[FeatureRow] = ROWS) -> str:
    """Return the section between its two marks."""
    records = records_of(document)
    commits = {row["item"]: row["commit"] for row in document["rows"]}
    lines = [*_table(records, commits, rows), *_steps(records, rows), *_notes(records, rows)]
    return "\n".join([BEGIN, "", *lines, END])


def _table(records: Records, commits: Mapping[str, str], rows: Sequence[FeatureRow]) -> Iterator[str]:
    yield f"| feature | {' | '.join(Column)} | commit |"
    yield f"|---|{'---|' * len(Column)}---|"
    for row in rows:
        if (record := records.get(row.name)) is not None:
            cells = [_words(record["cells"].get(str(column))) for column in Column]
            yield f"| {row.name} | {' | '.join(cells)} | {commits[row.name]} |"
    yield ""
    if left := [row.name for row in rows if row.name not in records]:
        yield from _wrapped(f"Rows that were not run yet: {'; '.join(left)}.")
        yield ""


def _words(modes: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Return the results of a cell in the order greedy, seeded, unseeded; modes that a row lacks are left out."""
    if modes is None:
        return "–"
    said = [SHORT[Result(modes[mode]["result"])] for mode in Mode if mode in modes]
    return said[0] if len(set(said)) == 1 else " · ".join(said)


def _steps(records: Records, rows: Sequence[FeatureRow]) -> Iterator[str]:
    yield "Longest interruption, in steps of the row's own fault-free run:"
    yield ""
    yield f"| feature | step, ms | {' | '.join(Column)} |"
    yield f"|---|---|{'---|' * len(Column)}"
    for row in rows:
        if (record := records.get(row.name)) is not None:
            steps = [longest_steps(record, column) for column in Column]
            said = ["–" if one is None else f"{one:.0f}" for one in steps]
            yield f"| {row.name} | {record['step_ms']:.0f} | {' | '.join(said)} |"
    yield ""


def longest_steps(record: Mapping[str, Any], column: str) -> float | None:
    modes = record["cells"].get(str(column)) or {}
    return max((cell["steps"] for cell in modes.values() if "steps" in cell), default=None)


def _notes(records: Records, rows: Sequence[FeatureRow]) -> Iterator[str]:
    """Tell what the host does not repeat, what would be needed, and what is broken."""
    for row in rows:
        record = records.get(row.name)
        if record is None:
            continue
        if record["unrepeated"]:
            yield from _bullet(f"**{row.name}**: two fault-free runs differ in {', '.join(record['unrepeated'])}")
        if (plain := record.get("plain")) is not None:
            differ, refused = (", ".join(plain[kind]) or "nothing" for kind in ("unrepeated", "unlikely"))
            said = f"two runs of plain vLLM differ in {differ}, and the oracle refuses {refused}"
            yield from _bullet(f"**{row.name}**: {said}")
        if record.get("unlikely"):
            names = ", ".join(record["unlikely"])
            yield from _bullet(f"**{row.name}**: without a fault the oracle refuses {names}")
        for text in filter(None, (row.note, row.needs)):
            yield from _bullet(f"**{row.name}**: {text}")
        if wrong := [
            f"{column} ({mode})" for column, mode, cell in cells_of(record) if cell["result"] == Result.BROKEN
        ]:
            yield from _bullet(f"**{row.name}**: broken in {', '.join(wrong)}")


def _bullet(text: str) -> Iterator[str]:
    yield from _wrapped(f"- {text}.", indent="  ")


def _wrapped(text: str, indent: str = "", columns: int = 100) -> Iterator[str]:
    """Yield a text in lines of at most `columns`."""
    line, *words = text.split()
    for word in words:
        if len(line) + 1 + len(word) > columns:
            yield line
            line = indent + word
        else:
            line = f"{line} {word}"
    yield line


def put_into(page: str, made: str) -> str:
    """Return a page with the section between its marks replaced. Raises `ValueError` without the marks."""
    begin, end = page.index(BEGIN), page.index(END) + len(END)
    return page[:begin] + made + page[end:]


def shortcomings(records: Records, rows: Sequence[FeatureRow] = ROWS) -> list[str]:
    """Return what all rows between them fall short of; empty when the matrix is as promised."""
    found = [f"{row.name}: not run" for row in rows if row.name not in records]
    counts: Counter[bool] = Counter()
    for row in rows:
        record = records.get(row.name)
        if record is None:
            continue
        for column, mode, cell in cells_of(record):
            result = Result(cell["result"])
            if result is Result.BROKEN:
                found.append(f"{row.name}, {column}, {mode}: broken: {cell.get('why', '')}")
            if result in (Result.ENDS_ALONE, Result.REFUSED) and not row.needs:
                found.append(f"{row.name}: no sentence says what would be needed")
            if mode != Mode.UNSEEDED and result not in (Result.BY_ORACLE, Result.HOST_FAILS):
                counts[result is Result.EXACT] += 1
        found += _slow(row.name, record, records)
    if counts and counts[True] < EXACT_SHARE * counts.total():
        found.append(f"{counts[True]} of {counts.total()} cells that plain vLLM repeats are exact")
    return found


def _slow(name: str, record: Mapping[str, Any], records: Records) -> Iterator[str]:
    plain = records.get(ROWS[0].name)
    for column in Column:
        steps, allowed = longest_steps(record, column), longest_steps(plain, column) if plain else None
        if steps is not None and allowed and steps > TIMES_THE_PLAIN_ROW * allowed:
            yield f"{name}, {column}: interrupted for {steps:.0f} steps, the plain row for {allowed:.0f}"
