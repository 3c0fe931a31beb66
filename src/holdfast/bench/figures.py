"""The document of `bench recovery --json`, and its figures from faulted runs. Pure.

Each topology has its own medians, maximum, and full restart measured in the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from holdfast.bench.faulted_run import Neighbours, RunResult
from holdfast.bench.harms import Harm
from holdfast.bench.incident import paused_s, rebuild_s, replaced_s
from holdfast.bench.machine import Machine
from holdfast.bench.restart import Restart
from holdfast.bench.scenarios import Scenario
from holdfast.bench.targets import Measured, Target, targets_of
from holdfast.bench.topologies import Topology
from holdfast.chaos.checker import spread_of
from holdfast.chaos.processes import SessionUsage


class FaultedRun(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a faulted run of a scenario; seconds, over all streams.

    `rank` is None for a fault in an engine core. `paused_s` is from the detection of the fault until every rank of the
    lockstep group has paused, `rebuild_s` the slowest engine's time to rebuild its collectives, `replaced_s` from the
    loss of an engine core until its replacement served.
    """

    topology: str
    scenario: str
    harm: Harm = Harm.EXCEPTION
    phase: str
    load: str
    engine_id: int
    rank: int | None
    after_steps: int
    interruption_median_s: float | None
    interruption_max_s: float | None
    interruptions_s: tuple[float, ...]
    paused_s: float | None
    rebuild_s: float | None
    replaced_s: float | None = None
    neighbours: Neighbours | None
    fault_free_longest_gap_s: float
    client_lag_s: float
    interrupted_streams: int
    streams: int
    lost_tokens: int
    repeated_tokens: int
    changed_tokens: int
    faults: int = 1  # how often something was decided to be done
    ended_alone: int = 0  # poison requests, which are not among the streams
    recovery_reports: tuple[dict[str, Any], ...]  # per recovered engine, with `engine_id`
    problems: tuple[str, ...]
    events: tuple[Mapping[str, Any], ...] = ()  # of runs with a problem

    @property
    def place(self) -> str:
        return f"engine {self.engine_id}" + ("" if self.rank is None else f" rank {self.rank}")


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of several durations, in seconds."""

    count: int
    median_s: float
    max_s: float
    quartile_low_s: float
    quartile_high_s: float


class NeighbourFigures(
    msgspec.Struct, frozen=True, kw_only=True, rename={"runs": "trials", "undisturbed_runs": "undisturbed_trials"}
):
    """Figures of the streams on independent engines, over all runs; see `Neighbours`."""

    runs: int
    undisturbed_runs: int  # the longest gap was within the 99.9 % of the fault-free run
    longest_gap: Durations
    fault_free_p999: Durations
    fault_free_longest_gap: Durations
    restart_gap: Durations | None = None  # the longest gap until a lost engine core was replaced


class TopologyFigures(msgspec.Struct, frozen=True, kw_only=True, rename={"runs": "trials"}):
    """Figures of a topology under a single kind of fault.

    `failure` says why the measurement ended early; without a failure there is a restart.
    """

    topology: str
    harm: Harm = Harm.EXCEPTION
    standby: str = "none"
    engines: int
    ranks_per_engine: int
    lockstep: bool
    server_arguments: tuple[str, ...]
    runs: tuple[FaultedRun, ...]
    usage: tuple[SessionUsage, ...]  # of the server: before the first round of faults, and after each
    interruption: Durations | None  # over every interrupted stream of every run
    fault_free_longest_gap: Durations | None  # over the runs: the longest wait of the same load without a fault
    paused: Durations | None  # over the runs
    rebuild: Durations | None
    replaced: Durations | None = None
    neighbours: NeighbourFigures | None
    lost_tokens: int
    repeated_tokens: int
    changed_tokens: int
    restart: Restart | None
    restart_total_s: float | None
    restart_to_median_interruption: float | None
    restart_to_max_interruption: float | None
    targets: tuple[Target, ...]
    left_behind: tuple[str, ...]
    failure: str | None
    lawful: bool


class RecoveryDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `bench recovery --json`. `seed` is set for a soak, and draws the same faults again."""

    benchmark: str
    version: int
    machine: Machine
    environment: dict[str, str]
    streams: int
    tokens_per_stream: int
    client_scheduled_at_once: bool
    seed: int | None
    topologies: tuple[TopologyFigures, ...]
    lawful: bool
    targets_met: bool  # of every topology


def faulted_run_of(topology: Topology, scenario: Scenario, tokens: int, result: RunResult) -> FaultedRun:
    """Return the figures of a run's result."""
    interruption, waits = durations_of(result.waits_s()), result.waits_s()
    return FaultedRun(
        topology=topology.name,
        scenario=scenario.name,
        harm=scenario.harm,
        phase=scenario.phase,
        load=scenario.load,
        engine_id=scenario.engine_id,
        rank=scenario.rank if scenario.phase.in_worker else None,
        after_steps=scenario.after_steps(tokens),
        interruption_median_s=interruption.median_s if interruption else None,
        interruption_max_s=interruption.max_s if interruption else None,
        interruptions_s=tuple(waits),
        paused_s=paused_s(result.events),
        rebuild_s=rebuild_s(result.events),
        replaced_s=replaced_s(result.events),
        neighbours=result.neighbours,
        fault_free_longest_gap_s=result.reference_gap_s,
        client_lag_s=result.client_lag_s,
        interrupted_streams=len(waits),
        streams=len(result.interruptions_s),
        lost_tokens=result.comparison.lost,
        repeated_tokens=result.comparison.repeated,
        changed_tokens=result.comparison.changed,
        faults=result.faults,
        ended_alone=len(result.ended_alone),
        recovery_reports=tuple(
            {"engine_id": event["engine_id"], **event["report"]} for event in result.events if event.get("report")
        ),
        problems=result.problems,
        events=result.events if result.problems else (),
    )


def durations_of(durations_s: Iterable[float | None]) -> Durations | None:
    """Summarise the known durations; None without any."""
    known = [duration for duration in durations_s if duration is not None]
    if not known:
        return None
    spread = spread_of(known)
    return Durations(
        count=len(known),
        median_s=spread.median,
        max_s=spread.maximum,
        quartile_low_s=spread.quartile_low,
        quartile_high_s=spread.quartile_high,
    )


def figures_of(
    topology: Topology,
    runs: Sequence[FaultedRun],
    usage: Sequence[SessionUsage],
    restart: Restart | None,
    *,
    server_arguments: tuple[str, ...] = (),
    left_behind: tuple[str, ...] = (),
    failure: str | None = None,
) -> TopologyFigures:
    """Compute a topology's figures from all runs."""
    harm = runs[0].harm if runs else Harm.EXCEPTION
    interruption = durations_of(wait for run in runs for wait in run.interruptions_s)
    paused = durations_of(run.paused_s for run in runs)
    neighbours = _neighbour_figures([run.neighbours for run in runs if run.neighbours is not None])
    times_shorter = _ratio(restart, interruption.median_s if interruption else None)
    return TopologyFigures(
        topology=topology.name,
        harm=harm,
        standby=topology.standby,
        engines=topology.engines,
        ranks_per_engine=topology.ranks_per_engine,
        lockstep=topology.lockstep,
        server_arguments=server_arguments,
        runs=tuple(runs),
        usage=tuple(usage),
        interruption=interruption,
        fault_free_longest_gap=durations_of(run.fault_free_longest_gap_s for run in runs),
        paused=paused,
        rebuild=durations_of(run.rebuild_s for run in runs),
        replaced=durations_of(run.replaced_s for run in runs),
        neighbours=neighbours,
        lost_tokens=sum(run.lost_tokens for run in runs),
        repeated_tokens=sum(run.repeated_tokens for run in runs),
        changed_tokens=sum(run.changed_tokens for run in runs),
        restart=restart,
        restart_total_s=restart.total_s if restart else None,
        restart_to_median_interruption=times_shorter,
        restart_to_max_interruption=_ratio(restart, interruption.max_s if interruption else None),
        targets=targets_of(topology, harm, _measured(runs, paused, interruption, times_shorter, neighbours)),
        left_behind=left_behind,
        failure=failure,
        lawful=bool(runs) and failure is None and not left_behind and not any(run.problems for run in runs),
    )


def _measured(
    runs: Sequence[FaultedRun],
    paused: Durations | None,
    interruption: Durations | None,
    times_shorter: float | None,
    neighbours: NeighbourFigures | None,
) -> Measured:
    return Measured(
        paused_median_s=paused.median_s if paused else None,
        interruption_median_s=interruption.median_s if interruption else None,
        interruption_max_s=interruption.max_s if interruption else None,
        times_shorter=times_shorter,
        faults_max=max((run.faults for run in runs), default=None),
        neighbour_gap_s=neighbours.longest_gap.median_s if neighbours else None,
        neighbour_bound_s=neighbours.fault_free_p999.median_s if neighbours else None,
    )


def _ratio(restart: Restart | None, duration_s: float | None) -> float | None:
    return restart.total_s / duration_s if restart is not None and duration_s else None


def _neighbour_figures(neighbours: Sequence[Neighbours]) -> NeighbourFigures | None:
    longest = durations_of(one.longest_gap_s for one in neighbours)
    usual = durations_of(one.fault_free_p999_s for one in neighbours)
    usual_longest = durations_of(one.fault_free_longest_gap_s for one in neighbours)
    if longest is None or usual is None or usual_longest is None:
        return None
    return NeighbourFigures(
        runs=len(neighbours),
        undisturbed_runs=sum(one.undisturbed for one in neighbours),
        longest_gap=longest,
        fault_free_p999=usual,
        fault_free_longest_gap=usual_longest,
        restart_gap=durations_of(one.restart_gap_s for one in neighbours),
    )
