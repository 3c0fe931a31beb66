"""Figures of the benchmarks: how they are computed, and what their documents say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.bench.faulted_run import Neighbours, RunResult
from holdfast.bench.figures import FaultedRun, durations_of, faulted_run_of, figures_of
from holdfast.bench.loads import LoadKind, make_load
from holdfast.bench.machine import describe_machine
from holdfast.bench.overhead import Burst, Pair, added_per_step, burst_of, interval_of_median, ratio_of
from holdfast.bench.recovery import RecoverySettings
from holdfast.bench.restart import Restart
from holdfast.bench.scenarios import Scenario, random_scenarios
from holdfast.bench.topologies import DP2, MOE_EP, TP2
from holdfast.chaos.checker import compare_runs, percentile
from holdfast.chaos.history import History
from holdfast.core.faults.faults import Phase
from support.incidents import event, fault


def test_a_burst_counts_from_the_first_request_to_the_last_token() -> None:
    """Tokens per second of all streams together."""
    first = History("a", 0.0, token_ids=[1, 2], arrivals_s=[1.0, 2.0])
    second = History("b", 1.0, token_ids=[1, 2], arrivals_s=[3.0, 4.0])
    burst = burst_of([first, second], cpu_s=0.4)
    assert burst.tokens_per_s == 1.0
    assert burst.inter_token_p50_ms == 1000.0
    assert burst.server_cpu_ms_per_token == pytest.approx(100.0)


def test_percentiles_are_values_that_occurred() -> None:
    """No percentile is invented between two measurements."""
    ordered = [float(n) for n in range(1, 101)]
    assert (percentile(ordered, 0.5), percentile(ordered, 0.99), percentile(ordered, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.99) == 7.0


def test_ratios_are_taken_pair_by_pair() -> None:
    """A slow minute that hits both servers of a pair cancels out."""

    def burst(rate: float) -> Burst:
        return Burst(tokens_per_s=rate, inter_token_p50_ms=1, inter_token_p99_ms=1, server_cpu_ms_per_token=1)

    pairs = [Pair(first="off", off=burst(rate), on=burst(rate * 0.99)) for rate in (100.0, 1000.0, 10.0)]
    ratio = ratio_of("tokens_per_s", pairs)
    assert (ratio.median, ratio.minimum, ratio.maximum) == pytest.approx((0.99, 0.99, 0.99))


def test_time_added_to_a_step_is_the_difference_of_the_token_gaps_of_each_pair() -> None:
    """Slow pairs count as much as fast pairs."""

    def burst(gap_ms: float) -> Burst:
        return Burst(tokens_per_s=1, inter_token_p50_ms=gap_ms, inter_token_p99_ms=1, server_cpu_ms_per_token=1)

    pairs = [Pair(first="off", off=burst(gap_ms), on=burst(gap_ms + 0.02)) for gap_ms in (8.0, 80.0, 9.0)]
    added = added_per_step(pairs)
    assert (added.median_us, added.interval_low_us, added.interval_high_us) == pytest.approx((20, 20, 20))


@pytest.mark.parametrize(("count", "low", "high"), [(1, 1, 1), (5, 1, 5), (40, 14, 27), (100, 41, 60)])
def test_where_a_median_lies_is_told_by_ranks_whatever_the_spread(count: int, low: int, high: int) -> None:
    """The ranks are those of the binomial distribution; of few values it may lie anywhere between them."""
    assert interval_of_median([float(n) for n in range(count, 0, -1)]) == (low, high)


def test_no_run_is_served_from_the_cache_of_another() -> None:
    """Each load has a cache salt of its own and the same prompts."""
    one, other = (make_load(LoadKind.LONG_PROMPTS, streams=10, tokens=5) for _ in range(2))
    assert one[0].cache_salt != other[0].cache_salt
    assert len({spec.cache_salt for spec in one}) == 1
    assert [spec.prompt for spec in one] == [spec.prompt for spec in other]
    assert len({spec.prompt for spec in one}) == 10


def test_a_restart_is_the_sum_of_its_parts() -> None:
    """From the order to stop until the first token."""
    assert Restart(stop_s=1.0, start_s=20.0, first_token_s=0.5).total_s == 21.5


def test_the_machine_is_described_without_names_or_paths() -> None:
    """The description names versions and sizes, and encodes as JSON."""
    machine = describe_machine()
    assert machine.cores > 0
    assert "/root" not in msgspec.json.encode(machine).decode()


def test_streams_are_spread_over_the_engines_always_alike() -> None:
    """What a stream waited can be told by engine; with one engine nothing is pinned."""
    assert [spec.data_parallel_rank for spec in make_load(LoadKind.SHORT_PROMPTS, streams=4, tokens=5, engines=2)] == [
        *(0, 1, 0, 1)
    ]
    assert {spec.data_parallel_rank for spec in make_load(LoadKind.SHORT_PROMPTS, streams=4, tokens=5)} == {None}


RESTART = Restart(stop_s=1.0, start_s=18.0, first_token_s=1.0)
SCENARIO = Scenario("forward pass", Phase.FORWARD, engine_id=1, rank=1)


def result(*waits_s: float | None, neighbours: Neighbours | None = None, problems: tuple[str, ...] = ()) -> RunResult:
    """A fault at engine 1 rank 1 that engine 0 had to pause for."""
    report = {"requests": 4, "rebuild_s": 0.2}
    told = [
        fault(1.0, 1, 1),
        event("engine-paused", 1.04, 0),
        event("engine-paused", 1.06, 1),
        event("engine-recovered", 1.5, 1, report=report),
    ]
    waits = {f"answer {number}": wait for number, wait in enumerate(waits_s)}
    return RunResult(compare_runs([], []), waits, 0.01, 0.0, tuple(told), problems, neighbours)


def run(*waits_s: float | None, neighbours: Neighbours | None = None, problems: tuple[str, ...] = ()) -> FaultedRun:
    return faulted_run_of(MOE_EP, SCENARIO, 200, result(*waits_s, neighbours=neighbours, problems=problems))


def test_a_trial_tells_where_it_was_hurt_and_what_each_part_took() -> None:
    """A stream that was not touched is not counted as interrupted for 0 seconds."""
    one = run(0.5, None, 0.7)
    assert (one.engine_id, one.rank, one.place) == (1, 1, "engine 1 rank 1")
    assert one.after_steps == 80
    assert (one.interrupted_streams, one.streams) == (2, 3)
    assert one.interruption_median_s == pytest.approx(0.6)
    assert one.paused_s == pytest.approx(0.06, abs=0.005)
    assert one.rebuild_s == 0.2
    assert one.recovery_reports == ({"engine_id": 1, "requests": 4, "rebuild_s": 0.2},)


def test_a_trial_with_a_problem_keeps_its_events() -> None:
    """They say why; of a hundred runs that went well they would only be ballast."""
    assert run(0.5).events == ()
    kinds = [one["kind"] for one in run(0.5, problems=("answer 1: 1 tokens lost",)).events]
    assert kinds[0] == "fault-reported"
    assert kinds[-1] == "engine-recovered"


def test_a_fault_in_an_engine_core_has_no_rank() -> None:
    """The place says so."""
    one = faulted_run_of(MOE_EP, Scenario("before the agreement", Phase.DP_SYNC, engine_id=1), 200, result(0.5))
    assert (one.rank, one.place) == (None, "engine 1")


def test_durations_have_a_median_a_maximum_and_a_spread() -> None:
    """Unknown ones are left out; without any there is nothing to tell."""
    durations = durations_of([1.0, None, 2.0, 3.0, 4.0, 5.0])
    assert durations is not None
    assert (durations.count, durations.median_s, durations.max_s) == (5, 3.0, 5.0)
    assert (durations.quartile_low_s, durations.quartile_high_s) == (2.0, 4.0)
    assert durations_of([None]) is None


def test_a_topology_is_compared_with_its_own_restart() -> None:
    """Over every stream that was interrupted in any run."""
    figures = figures_of(MOE_EP, [run(0.4, 0.5), run(0.5, 1.0)], [], RESTART)
    assert figures.interruption is not None
    assert (figures.interruption.median_s, figures.interruption.max_s) == (0.5, 1.0)
    assert figures.restart_to_median_interruption == pytest.approx(40.0)
    assert figures.restart_to_max_interruption == pytest.approx(20.0)
    assert all(target.met for target in figures.targets)
    assert figures.lawful


def test_a_missed_target_breaks_no_law() -> None:
    """Slow and right is told apart from wrong."""
    figures = figures_of(MOE_EP, [run(5.0)], [], RESTART)
    assert figures.lawful
    assert [target.name for target in figures.targets if not target.met] == [
        "interruption, median",
        "interruption, max",
        "times shorter than a restart",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"runs": [run(0.5, problems=("answer 1: 1 tokens lost",))]},
        {"runs": []},
        {"failure": "the server ended"},
        {"left_behind": ("process 7",)},
    ],
    ids=["a problem", "no run", "a failure", "a process left behind"],
)
def test_nothing_wrong_passes_for_lawful(wrong: dict[str, Any]) -> None:
    """A problem, no run at all, a server that ended, or something of it that stayed."""
    arguments = {"runs": [run(0.5)], **wrong}
    assert not figures_of(TP2, usage=[], restart=RESTART, **arguments).lawful


def test_neighbours_are_counted_over_the_trials() -> None:
    """The median run is what is held against the bound."""
    calm, stirred = (
        Neighbours(streams=4, longest_gap_s=gap_s, fault_free_p999_s=0.02, fault_free_longest_gap_s=0.03)
        for gap_s in (0.01, 0.05)
    )
    figures = figures_of(DP2, [run(0.1, neighbours=one) for one in (calm, calm, stirred)], [], RESTART)
    assert figures.neighbours is not None
    assert (figures.neighbours.runs, figures.neighbours.undisturbed_runs) == (3, 2)
    assert (figures.neighbours.longest_gap.median_s, figures.neighbours.longest_gap.max_s) == (0.01, 0.05)
    [target] = [one for one in figures.targets if one.name == "neighbours' longest gap"]
    assert (target.found, target.bound, target.met) == (0.01, 0.02, True)


def test_a_soak_is_looked_at_ten_times() -> None:
    """No fault is left out; without a seed each repetition is a round."""
    drawn = random_scenarios(TP2, 25, 1)
    soak = RecoverySettings(chosen=(), logs=Path(), seed=1).rounds(drawn)
    assert len(soak) <= 10
    assert [one for part in soak for one in part] == list(drawn)
    assert RecoverySettings(chosen=(), logs=Path(), repeat=3).rounds(drawn) == [drawn] * 3
