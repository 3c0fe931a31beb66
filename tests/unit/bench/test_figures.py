"""Figures of the benchmarks: how they are computed, and what their documents say."""

from __future__ import annotations

import msgspec
import pytest

from holdfast.bench.loads import LoadKind, make_load
from holdfast.bench.machine import describe_machine
from holdfast.bench.overhead import Burst, Pair, burst_of, percentile, ratio_of
from holdfast.bench.recovery import SCENARIOS, choose_scenarios
from holdfast.bench.restart import Restart
from holdfast.chaos.history import History
from holdfast.core.faults import Phase


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


def test_every_phase_of_a_step_has_a_scenario() -> None:
    """No phase is left out but the one inside a recovery."""
    assert {scenario.phase for scenario in SCENARIOS} == set(Phase) - {Phase.RECOVERY}


def test_scenarios_are_chosen_by_word_or_phase() -> None:
    """A word of the name or the whole phase choose; none chooses all."""
    assert choose_scenarios([]) == SCENARIOS
    assert [one.name for one in choose_scenarios(["chunked"])] == ["chunked prefill"]
    assert all(one.phase is Phase.SAMPLE_END for one in choose_scenarios(["sample-end"]))


def test_a_word_in_vain_names_what_there_is() -> None:
    """A misspelt scenario says which there are."""
    with pytest.raises(ValueError, match="chunked prefill"):
        choose_scenarios(["chunky"])


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
