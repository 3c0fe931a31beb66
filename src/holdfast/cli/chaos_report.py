"""The result of `holdfast chaos`, as a document and as a table. Pure: data in, data and text out."""

from __future__ import annotations

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from holdfast.bench.machine import Machine
from holdfast.bench.topologies import Topology
from holdfast.chaos.campaign import Campaign, CampaignSettings
from holdfast.chaos.leaks import leaks, total
from holdfast.chaos.processes import SessionUsage
from holdfast.chaos.tally import Kill


class KillFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a kill, in seconds.

    `healed_s` is the time until every process is present and healthy; None when that never happened.
    """

    at_s: float
    kind: str
    name: str
    connections: int
    healed_s: float | None
    longest_gap_s: float


class ChaosDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `holdfast chaos --json`.

    `severed` counts answers that ended with the API server that held their connection.
    """

    benchmark: str
    version: int
    machine: Machine
    topology: str
    standby: str
    seed: int
    duration_s: float
    period_s: float
    kills: tuple[KillFigures, ...]
    answers: int
    tokens: int
    exact: int
    severed: int
    wrong: int
    lost_tokens: int
    repeated_tokens: int
    changed_tokens: int
    held_before: SessionUsage
    held_after: SessionUsage
    leaks: tuple[str, ...]
    left_behind: tuple[str, ...]
    problems: tuple[str, ...]
    exit_code: int | None
    lawful: bool


def document_of(
    topology: Topology,
    settings: CampaignSettings,
    machine: Machine,
    campaign: Campaign,
    left_behind: tuple[str, ...],
    exit_code: int | None,
) -> ChaosDocument:
    """Collect the results of a run, and judge whether every law held."""
    tally = campaign.tally
    abandoned = sorted(f"shared memory of a killed process: {segment}" for segment in campaign.abandoned)
    grown = (*leaks(campaign.before, campaign.after), *abandoned)
    problems = (*campaign.problems, *tally.problems)
    ended_well = exit_code == 0 and not left_behind
    begin_s = campaign.kills[0].at_s if campaign.kills else 0.0
    return ChaosDocument(
        benchmark="chaos",
        version=1,
        machine=machine,
        topology=topology.name,
        standby=topology.standby,
        seed=settings.seed,
        duration_s=campaign.duration_s,
        period_s=settings.period_s,
        kills=tuple(_figures_of(kill, begin_s) for kill in campaign.kills),
        answers=tally.answers,
        tokens=tally.tokens,
        exact=tally.exact,
        severed=tally.severed,
        wrong=tally.wrong,
        lost_tokens=tally.lost_tokens,
        repeated_tokens=tally.repeated_tokens,
        changed_tokens=tally.changed_tokens,
        held_before=total(campaign.before),
        held_after=total(campaign.after),
        leaks=grown,
        left_behind=left_behind,
        problems=problems,
        exit_code=exit_code,
        lawful=bool(campaign.kills) and tally.exact > 0 and ended_well and not (grown or problems or tally.wrong),
    )


def _figures_of(kill: Kill, begin_s: float) -> KillFigures:
    return KillFigures(
        at_s=kill.at_s - begin_s,
        kind=kill.victim.kind,
        name=kill.victim.name,
        connections=len(kill.ports),
        healed_s=kill.healed_s,
        longest_gap_s=kill.longest_gap_s,
    )


def chaos_report(document: ChaosDocument, console: Console) -> None:
    """Print a line per kill, followed by the state of the answers and of the server."""
    console.print(_table(document))
    for line in [*_summary(document), _conclusion(document)]:
        console.print(line, markup=False, soft_wrap=True)


def _table(document: ChaosDocument) -> Table:
    title = f"{document.topology}: processes killed at random, --seed {document.seed}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("after", "killed", "process", "its connections", "longest wait", "healed after"):
        table.add_column(heading, justify="left" if heading in {"killed", "process"} else "right")
    for kill in document.kills:
        healed = "never" if kill.healed_s is None else f"{kill.healed_s:.1f} s"
        connections = str(kill.connections) if kill.connections else "–"
        table.add_row(f"{kill.at_s:.0f} s", kill.kind, kill.name, connections, f"{kill.longest_gap_s:.2f} s", healed)
    return table


def _summary(document: ChaosDocument) -> list[str]:
    before, after = document.held_before, document.held_after
    lines = [
        f"{document.answers} answers, {document.tokens} tokens in {document.duration_s:.0f} s: {document.exact} exact, "
        f"{document.wrong} wrong ({document.lost_tokens} tokens lost, {document.repeated_tokens} repeated, "
        f"{document.changed_tokens} changed); {document.severed} ended with the API server that held their connection.",
        f"Held before and after: {before.files} and {after.files} open files, {before.threads} and {after.threads} "
        f"threads, {before.resident_bytes / 2**20:.0f} and {after.resident_bytes / 2**20:.0f} MiB, "
        f"{before.shared_segments} and {after.shared_segments} mappings of shared memory.",
    ]
    lines += [f"leak: {what}" for what in document.leaks]
    lines += [f"left behind: {what}" for what in document.left_behind]
    return lines + [f"problem: {what}" for what in document.problems]


def _conclusion(document: ChaosDocument) -> str:
    if document.lawful:
        return f"HELD FAST: {len(document.kills)} processes killed, nothing lost, nothing changed, nothing left."
    return f"FAILED; the server's exit code was {document.exit_code}."
