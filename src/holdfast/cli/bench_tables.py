"""The benchmarks' documents as tables for people, readable at 100 columns. Pure: data in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from holdfast.bench.figures import (
    Durations,
    FaultedRun,
    NeighbourFigures,
    RecoveryDocument,
    TopologyFigures,
    durations_of,
)
from holdfast.bench.harms import Harm
from holdfast.bench.overhead import OverheadDocument
from holdfast.bench.restart import Restart
from holdfast.bench.targets import Target, is_counted
from holdfast.chaos.processes import SessionUsage

_METRIC_NAMES = {
    "tokens_per_s": "tokens/s",
    "inter_token_p50_ms": "token gap p50, ms",
    "inter_token_p99_ms": "token gap p99, ms",
    "server_cpu_ms_per_token": "server CPU ms/token",
}


def recovery_report(document: RecoveryDocument, console: Console) -> None:
    """Print a table per topology, followed by the topology's summary."""
    if document.seed is not None:
        console.print(
            f"Random faults drawn with --seed {document.seed}; the same seed draws the same faults.", markup=False
        )
    for figures in document.topologies:
        _report_topology(figures, console)


def _report_topology(figures: TopologyFigures, console: Console) -> None:
    console.print(_scenario_table(figures))
    for line in [*_problems(figures), *_summary(figures)]:
        console.print(line, markup=False, soft_wrap=True)
    console.print()


def _label(figures: TopologyFigures) -> str:
    standby = "" if figures.standby == "none" else f" with a {figures.standby} standby"
    return figures.topology + standby


def _scenario_table(figures: TopologyFigures) -> Table:
    many = figures.engines * figures.ranks_per_engine > 1
    title = f"{_label(figures)}: {figures.harm.heading} on a running server"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    where, parts = (("at",), ("paused", "rebuild")) if many else ((), ())
    fault = "exception" if figures.harm is Harm.EXCEPTION else "fault"
    for heading in (fault, *where, "runs", "median", "max", *parts, "lost", "twice", "changed", "lawful"):
        table.add_column(heading, justify="left" if heading in {fault, "at"} else "right", no_wrap=True)
    for runs in _by_row(figures.runs):
        table.add_row(*_row(runs, many))
    return table


def _by_row(runs: Iterable[FaultedRun]) -> Iterable[Sequence[FaultedRun]]:
    """Group the runs of the same scenario at the same place."""
    rows: dict[tuple[str, int, int | None], list[FaultedRun]] = {}
    for run in runs:
        rows.setdefault((run.scenario, run.engine_id, run.rank), []).append(run)
    return rows.values()


def _row(runs: Sequence[FaultedRun], many: bool) -> list[str]:
    first, waits = runs[0], durations_of(wait for run in runs for wait in run.interruptions_s)
    parts = [_longest(run.paused_s for run in runs), _longest(run.rebuild_s for run in runs)]
    return [
        first.scenario,
        *([_place(first)] if many else []),
        str(len(runs)),
        _duration(waits.median_s if waits else None),
        _duration(waits.max_s if waits else None),
        *(parts if many else []),
        str(sum(run.lost_tokens for run in runs)),
        str(sum(run.repeated_tokens for run in runs)),
        str(sum(run.changed_tokens for run in runs)),
        "NO" if any(run.problems for run in runs) else "yes",
    ]


def _place(run: FaultedRun) -> str:
    """Return engine and rank as text; an engine core has no rank."""
    return f"e{run.engine_id}" + ("" if run.rank is None else f" r{run.rank}")


def _problems(figures: TopologyFigures) -> list[str]:
    told = [f"{run.scenario}, {run.place}: {problem}" for run in figures.runs for problem in run.problems]
    told += [f"left behind: {what}" for what in figures.left_behind]
    return told + ([f"ended early: {figures.failure}"] if figures.failure else [])


def _summary(figures: TopologyFigures) -> list[str]:
    lines = [_in_words("the streams waited", figures.interruption), _without_a_fault(figures.fault_free_longest_gap)]
    lines.append(_in_words("every rank paused after", figures.paused))
    if figures.rebuild and figures.rebuild.max_s >= 0.001:  # without anything to rebuild, a moment is measured too
        lines.append(_in_words("collectives were rebuilt in", figures.rebuild))
    lines.append(_in_words("the replacement of a lost engine core served after", figures.replaced))
    if figures.neighbours is not None:
        lines.append(_neighbours(figures.neighbours))
    if figures.restart is not None:
        lines.append(_restart(figures.restart))
    if figures.restart_to_median_interruption and figures.restart_to_max_interruption:
        lines.append(
            f"Interruption: {_times(figures.restart_to_median_interruption)} times shorter in the median, "
            f"{_times(figures.restart_to_max_interruption)} times in the worst stream."
        )
    return [line for line in [*lines, _usage(figures.usage), *map(_target, figures.targets)] if line]


def _target(target: Target) -> str:
    """Describe whether a target was met."""
    bound, found = (_of_target(target, value) for value in (target.bound, target.found))
    return f"{'reached' if target.met else 'MISSED':>8}  {target.name}: {found} (to reach: {bound})"


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value % 1 == 0 else f"{value:.1f}"


def _of_target(target: Target, value: float | None) -> str:
    if not is_counted(target.name):
        return _duration(value)
    return "–" if value is None else _times(value)


def _in_words(what: str, durations: Durations | None) -> str:
    if durations is None:
        return ""
    half = f"half of them {_duration(durations.quartile_low_s)} to {_duration(durations.quartile_high_s)}"
    median, longest = _duration(durations.median_s), _duration(durations.max_s)
    return f"After a fault {what} {median} in the median, {longest} at most; {half}."


def _without_a_fault(longest_gap: Durations | None) -> str:
    """Describe the longest wait without a fault: on a busy machine every figure is worse."""
    if longest_gap is None:
        return ""
    return (
        f"Without a fault the longest wait of a run was {_duration(longest_gap.median_s)} in the median, "
        f"{_duration(longest_gap.max_s)} at most."
    )


def _neighbours(neighbours: NeighbourFigures) -> str:
    later = neighbours.restart_gap
    starting = f"; while a lost engine core was replaced {_duration(later.max_s)} in the worst" if later else ""
    return (
        f"Meanwhile the other engine's streams had gaps of {_duration(neighbours.longest_gap.median_s)} at most in the "
        f"median run, {_duration(neighbours.longest_gap.max_s)} in the worst{starting}. "
        f"Without a fault 99.9 % of their gaps are within {_duration(neighbours.fault_free_p999.median_s)} "
        f"(median of the runs), the longest is {_duration(neighbours.fault_free_longest_gap.max_s)}. "
        f"Not above their own fault-free 99.9 %: {neighbours.undisturbed_runs} of {neighbours.runs} runs."
    )


def _restart(restart: Restart) -> str:
    return (
        f"Full restart of the same server: {restart.total_s:.1f} s (stop {restart.stop_s:.1f}, "
        f"start {restart.start_s:.1f}, first token {restart.first_token_s:.2f}); every answer would be lost."
    )


def _usage(usage: Sequence[SessionUsage]) -> str:
    """Describe the server's resources before the first fault and after the last."""
    if len(usage) < 2:
        return ""
    before, after = usage[0], usage[-1]
    mib = 2**20
    return (
        f"The server held, before and after: {before.files} and {after.files} open files, {before.threads} and "
        f"{after.threads} threads, {before.resident_bytes / mib:.0f} and {after.resident_bytes / mib:.0f} MiB, "
        f"{before.shared_segments} and {after.shared_segments} segments of shared memory."
    )


def overhead_report(document: OverheadDocument, console: Console) -> None:
    """Print a row per metric."""
    table = Table(
        title=f"Holdfast on / off, {len(document.pairs)} interleaved pairs", title_justify="left", box=SIMPLE_HEAD
    )
    for heading in ("", "off", "on", "on/off", "95 %", "quartiles", "min", "max"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for ratio in document.ratios:
        quartiles = f"{ratio.quartile_low:.3f}–{ratio.quartile_high:.3f}"
        interval = f"{ratio.interval_low:.3f}–{ratio.interval_high:.3f}"
        figures = (f"{ratio.off_median:.4g}", f"{ratio.on_median:.4g}", f"{ratio.median:.3f}", interval, quartiles)
        table.add_row(_METRIC_NAMES[ratio.metric], *figures, f"{ratio.minimum:.3f}", f"{ratio.maximum:.3f}")
    console.print(table)
    added = document.added_per_step
    interval = f"{added.interval_low_us:.0f} to {added.interval_high_us:.0f}"
    console.print(f"Added to a step: {added.median_us:.0f} µs (95 %: {interval} µs).")
    console.print("The answers are equal, token by token." if not document.problems else "\n".join(document.problems))


def _longest(durations_s: Iterable[float | None]) -> str:
    durations = durations_of(durations_s)
    return _duration(durations.max_s if durations else None)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
