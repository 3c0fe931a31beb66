"""The page of measured figures, written from the documents that the benchmarks left. Pure: data in, Markdown out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from holdfast.bench.harms import Harm
from holdfast.bench.targets import is_counted

Document = Mapping[str, Any]
Documents = Mapping[str, Document]  # by file name

_OPENING = """# Measured figures

Written by `make figures` from the documents in this folder; see
[how they are measured](../reference/bench.md). A small model made on the spot, vLLM on CPUs, no
GPU. "Restart" is the full restart of the same server, measured in the same run, up to its first
token; every answer would be lost with it.
"""
_RECOVERY = (
    *("hurt by", "topology", "standby", "faults", "median", "max"),
    *("restart", "times shorter", "wrong tokens", "to reach"),
)
_MACHINE = ("document", "measured", "processor", "cores", "load before", "niceness")
_CHAOS = ("topology", "minutes", "killed", "answers", "exact", "severed", "wrong", "leaks", "longest wait", "document")


def figures_page(documents: Documents) -> str:
    """Return the page as Markdown: a table for each benchmark, sorted by document name."""
    parts = [_OPENING, *_recoveries(_of_kind(documents, "recovery")), *_runs(_of_kind(documents, "chaos"))]
    parts += [_overhead(name, one) for name, one in _of_kind(documents, "overhead").items()]
    parts += ["## Machines\n", _table(_MACHINE, _machines(documents))]
    return "\n".join(part for part in parts if part)


def _of_kind(documents: Documents, benchmark: str) -> Documents:
    return {name: one for name, one in sorted(documents.items()) if one["benchmark"] == benchmark}


def _recoveries(documents: Documents) -> list[str]:
    rows = sorted(row for name, one in documents.items() for row in _recovery_rows(name, one))
    if not rows:
        return []
    about = "Interruption per stream, over every interrupted stream of every fault.\n"
    missed = [_targets(one) for one in documents.values()]
    return ["## What a fault costs\n", about, _table(_RECOVERY, rows), *missed]


def _runs(documents: Documents) -> list[str]:
    rows = [_chaos_row(name, one) for name, one in documents.items()]
    return ["## Chaos\n", _table(_CHAOS, rows)] if rows else []


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _recovery_rows(name: str, document: Document) -> Iterator[list[str]]:
    for figures in _topologies(document):
        waits, wrong = figures["interruption"] or {}, ("lost_tokens", "repeated_tokens", "changed_tokens")
        missed = [target["name"] for target in figures["targets"] if not target["met"]]
        yield [
            _harm(figures),
            f"[{figures['topology']}]({name})",
            figures.get("standby", "none"),
            str(len(figures["trials"])),
            _duration(waits.get("median_s")),
            _duration(waits.get("max_s")),
            _duration(figures["restart_total_s"]),
            _times(figures["restart_to_median_interruption"]),
            str(sum(figures[one] for one in wrong)),
            ("all reached" if not missed else f"missed: {', '.join(missed)}") if figures["targets"] else "–",
        ]


def _topologies(document: Document) -> Sequence[Document]:
    """Return the figures by topology; the first version of the document has a single rank and exceptions only."""
    if "topologies" in document:
        found: Sequence[Document] = document["topologies"]
        return found
    waits = {"median_s": document["interruption_median_s"], "max_s": document["interruption_max_s"]}
    return [{**document, "topology": "one", "interruption": waits, "targets": ()}]


def _targets(document: Document) -> str:
    """List the missed targets with their figures."""
    lines = [line for figures in _topologies(document) for line in _missed(figures)]
    return "Missed:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _missed(figures: Document) -> Iterator[str]:
    who = f"{_harm(figures)}, {figures['topology']}, standby {figures.get('standby', 'none')}"
    for target in figures["targets"]:
        if not target["met"]:
            yield f"- {who}: {target['name']} {_of(target, 'found')}, to reach {_of(target, 'bound')}"


def _harm(figures: Document) -> str:
    return Harm(figures.get("harm", Harm.EXCEPTION)).heading


def _of(target: Document, which: str) -> str:
    return _times(target[which]) if is_counted(target["name"]) else _duration(target[which])


def _chaos_row(name: str, document: Document) -> list[str]:
    longest = max((kill["longest_gap_s"] for kill in document["kills"]), default=None)
    counted = (document["answers"], document["exact"], document["severed"], document["wrong"])
    return [
        f"{document['topology']}, standby {document['standby']}",
        f"{document['duration_s'] / 60:.1f}",
        str(len(document["kills"])),
        *map(str, counted),
        "; ".join((*document["leaks"], *document["left_behind"])) or "none",
        _duration(longest),
        f"[{name}]({name})",
    ]


def _overhead(name: str, document: Document) -> str:
    rows = [
        [one["metric"], f"{one['median']:.3f}", *(_between(one, of) for of in ("interval", "quartile"))]
        for one in document["ratios"]
    ]
    head = "## What it costs while nothing fails\n"
    about = f"On divided by off, [{len(document['pairs'])} interleaved pairs]({name}).\n"
    return f"{head}\n{about}\n{_table(('', 'median', '95 % interval of it', 'quartiles'), rows)}{_added(document)}"


def _added(document: Document) -> str:
    """Return the line about the time of a step; documents of earlier versions have no such figure."""
    added = document.get("added_per_step")
    if added is None:
        return ""
    interval = f"{added['interval_low_us']:.0f} to {added['interval_high_us']:.0f}"
    return f"\nAdded to a step: {added['median_us']:.0f} µs (95 %: {interval} µs).\n"


def _between(ratio: Document, what: str) -> str:
    return f"{ratio[f'{what}_low']:.3f}–{ratio[f'{what}_high']:.3f}"


def _machines(documents: Documents) -> Iterator[list[str]]:
    for name, document in sorted(documents.items()):
        machine = document["machine"]
        day = str(machine["measured_at"]).partition("T")[0]
        yield [
            f"[{name}]({name})",
            day,
            machine["processor"],
            *(str(machine.get(one, 0)) for one in ("cores", "load_average", "niceness")),
        ]


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 or value % 1 == 0 else f"{value:.1f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
