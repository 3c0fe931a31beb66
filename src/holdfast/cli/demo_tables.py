"""Pictures of the demo: growing streams, events in order, results. Pure: data in, rich renderables out."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from holdfast.bench.faulted_run import Neighbours, RunResult
from holdfast.bench.incident import Events, felt_window, has_moved, noticed_at, paused_s, rebuild_s
from holdfast.bench.restart import Restart
from holdfast.chaos.checker import interruption_s, spread_of
from holdfast.chaos.control import ARMED, FAULT, LOST, RESTARTED
from holdfast.chaos.history import History

LAST_WORDS_CHARS = 48
REASON_CHARS = 120
MESSAGE_CHARS = 80  # a library's own message may be a paragraph
RATE_WINDOW_S = 1.0
_STYLES = {
    "waiting": "dim",
    "flowing": "green",
    "INTERRUPTED": "bold red",
    "resumed": "bold cyan",
    "moved": "bold cyan",
    "failed": "bold red",
}


def screen(histories: Sequence[History], events: Sequence[Mapping[str, Any]], total: int) -> RenderableType:
    """Draw a running load: a line per stream of `total` tokens, then the events."""
    table = _stream_grid()
    now_s, engine_ids = time.monotonic(), {history.engine_id for history in histories}
    for history in histories:
        state = _state(history, events, engine_ids)
        style = _STYLES.get(state.split()[0], "")
        bar = ProgressBar(total=total, completed=len(history.token_ids), width=16)
        rate = f"{_tokens_per_s(history, now_s):.0f}/s"
        words = Text(_last_words(history), style="italic")
        table.add_row(history.name, bar, str(len(history.token_ids)), rate, Text(state, style=style), words)
    return Group(table, *(Text(line) for line in event_lines(events)))


def _stream_grid() -> Table:
    """Build a grid with a line per stream at any width: the last words are cut first."""
    table = Table.grid(padding=(0, 1))
    for width in (9, 16, 4, 5, 20):
        table.add_column(min_width=width, no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _state(history: History, events: Events, engine_ids: Collection[int | None]) -> str:
    if history.error is not None:
        return "failed"
    window = felt_window(events, history.engine_id, engine_ids)
    if window is not None and (not history.finished or _goes_beyond(history, window.fault_s)):
        wait_s = interruption_s(history, history, window.fault_s, window.recovered_s)
        moved = has_moved(events, history.engine_id, engine_ids)
        if wait_s is None or not _goes_beyond(history, window.fault_s if moved else window.recovered_s):
            return "INTERRUPTED"
        return f"{'moved' if moved else 'resumed'} after {wait_s * 1000:.0f} ms"
    return "waiting" if not history.token_ids else "done" if history.finished else "flowing"


def _goes_beyond(history: History, at_s: float) -> bool:
    return bool(history.arrivals_s) and history.arrivals_s[-1] > at_s


def _tokens_per_s(history: History, now_s: float) -> float:
    """Return the rate over the last second; of a finished answer, over the whole answer."""
    if not history.arrivals_s:
        return 0.0
    if history.finished:
        return len(history.token_ids) / max(history.arrivals_s[-1] - history.sent_s, 1e-6)
    return sum(arrival > now_s - RATE_WINDOW_S for arrival in reversed(history.arrivals_s)) / RATE_WINDOW_S


def _last_words(history: History) -> str:
    text = "".join(sign if sign.isprintable() else " " for sign in history.text[-2 * LAST_WORDS_CHARS :])
    return "…" + " ".join(text.split())[-LAST_WORDS_CHARS:] if text else ""


def event_lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe events, with milliseconds since the detection of the fault."""
    begin = min((noticed_at(event) for event in events if event["kind"] in {FAULT, LOST}), default=None)
    several = any(event.get("engine_id") for event in events)
    return [_event_line(event, begin, several) for event in events if event["kind"] != ARMED]


def _event_line(event: Mapping[str, Any], begin: float | None, several: bool) -> str:
    offset = "" if begin is None else f"{(event['at'] - begin) * 1000:+8.1f} ms"
    who = event.get("process") or f"engine {event['engine_id']}"
    engine = f"{who}  " if several or "process" in event else ""
    return f"{offset:>12}  {engine}{event['kind'].replace('-', ' '):<18}  {_event_detail(event)}".rstrip()


def _event_detail(event: Mapping[str, Any]) -> str:
    if report := event.get("report"):
        rebuild = report.get("rebuild_s", 0.0)
        rebuilt = f"rebuilt in {rebuild * 1000:.0f} ms, " if _worth_telling(rebuild) else ""
        return (
            f"{rebuilt}{report.get('requests', 0)} requests rewound, {report.get('kept_blocks', 0)} KV blocks kept, "
            f"{report.get('evicted_blocks', 0)} evicted, {report.get('tokens_to_recompute', 0)} tokens to redo"
        )
    if fault := event.get("fault"):
        rank = "" if fault.get("rank") is None else f" in rank {fault['rank']}"
        phase = f" at {fault['phase']}" if fault.get("phase") else ""
        return f"{fault['error_type']}{rank}{phase}: {shorten(fault['message'], MESSAGE_CHARS, placeholder=' …')}"
    if event["kind"] == RESTARTED:
        return f"another process serves in its place after {event.get('interruption_s', 0.0):.1f} s"
    return _in_brief(str(event.get("reason") or ""))


def _in_brief(reason: str) -> str:
    """Shorten a reason in the middle: the decision stands at the end, the fault in the line before."""
    if len(reason) <= REASON_CHARS:
        return reason
    return f"{reason[: REASON_CHARS // 2].rsplit(' ', 1)[0]} … {reason[-REASON_CHARS // 2 :].split(' ', 1)[1]}"


def _worth_telling(rebuild_s: float) -> bool:
    """Return whether a rebuild took noticeable time; without anything to rebuild it takes a moment too."""
    return rebuild_s >= 0.001


_RESULTS = ("interruption", "tokens", "equal", "lost", "repeated", "changed")


def stream_results(result: RunResult) -> Table:
    """Tabulate the interruption of each client, and whether the answer is right."""
    table = Table(title="Each answer against the fault-free run", title_justify="left")
    several = any(result.engines.values())
    for heading in ("answer", *(["engine"] if several else []), *_RESULTS):
        table.add_column(heading, justify="left" if heading == "answer" else "right")
    for stream in result.comparison.streams:
        wait_s = result.interruptions_s.get(stream.name)
        wait = "–" if wait_s is None else f"{wait_s * 1000:.0f} ms"
        equal = "yes" if stream.exact else "NO"
        counts = (str(stream.lost), str(stream.repeated), str(stream.changed))
        engine = [str(result.engines.get(stream.name))] if several else []
        table.add_row(stream.name, *engine, wait, f"{stream.tokens} of {stream.expected}", equal, *counts)
    for one in result.ended_alone:
        told = ("–", f"{one.tokens} of {one.expected}", "ended", "–", "–", "–")
        table.add_row(one.name, *(["–"] if several else []), *told)
    return table


def cost_table(result: RunResult, restart: Restart) -> Table:
    """Tabulate the interruption beside the full restart of the same server."""
    table = Table(title="What the fault cost", title_justify="left", show_header=False)
    if waits := result.waits_s():
        spread = spread_of(waits)
        felt = f"{spread.median * 1000:.0f} ms in the median, {spread.maximum * 1000:.0f} ms at most; no answer lost"
        times = f"{restart.total_s / spread.median:.0f} times shorter ({restart.total_s / spread.maximum:.0f} at least)"
        table.add_row("with holdfast", felt if result.lawful else felt.partition(";")[0])
    else:
        times = "no answer was interrupted"
    for one in result.ended_alone:
        table.add_row(f"{one.name}, ended alone", f"faults until then: {result.faults}; told: {one.error}")
    if parts := _recovery_parts(result):
        table.add_row("recovery", parts)
    if result.neighbours is not None:
        table.add_row("the other engine's answers", _neighbours(result.neighbours))
    steps = f"stop {restart.stop_s:.1f} s, start {restart.start_s:.1f} s, first token {restart.first_token_s:.2f} s"
    table.add_row("full restart, same server", f"{restart.total_s:.1f} s ({steps}); every answer lost")
    table.add_row("ratio", times)
    return table


def _recovery_parts(result: RunResult) -> str:
    """Describe how long the pause took, and the rebuild of broken collectives."""
    paused, rebuilt = paused_s(result.events), rebuild_s(result.events) or 0.0
    told = [] if paused is None else [f"every rank paused after {paused * 1000:.0f} ms"]
    return ", ".join([*told, *([f"collectives rebuilt in {rebuilt * 1000:.0f} ms"] if _worth_telling(rebuilt) else [])])


def _neighbours(neighbours: Neighbours) -> str:
    longest, usual, usual_longest = (
        f"{seconds * 1000:.0f} ms"
        for seconds in (neighbours.longest_gap_s, neighbours.fault_free_p999_s, neighbours.fault_free_longest_gap_s)
    )
    later = neighbours.restart_gap_s
    starting = "" if later is None else f", {later * 1000:.0f} ms until the lost engine core was replaced"
    return (
        f"{neighbours.streams} not interrupted: longest gap between two tokens meanwhile {longest}{starting}; "
        f"without a fault 99.9 % within {usual}, longest {usual_longest}"
    )
