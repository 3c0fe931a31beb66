"""Requests that make every batch fail that they are in, over seeds: they end alone, and everybody else is exact."""

import random

import pytest

from holdfast.chaos.simulation import Conditions, Simulation, Weather, simulate
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import FaultKind, InjectionSpec
from holdfast.core.protocol.events import EventKind
from holdfast.hosts.fake import EngineOptions
from support.seeds import seeds

WIDE = EngineOptions(blocks=600, step_tokens=400, max_running=64, steps_in_flight=2)
NARROW = EngineOptions(blocks=40, step_tokens=16, max_running=4, steps_in_flight=2)
TWO_RANKS = EngineOptions(ranks=2, blocks=600, step_tokens=64, max_running=32)
FOREVER = 1000
MOST_FAULTS = 7


def poison(request: str, **about) -> InjectionSpec:
    return InjectionSpec(phase=Phase.FORWARD, times=FOREVER, request=request, **about)


class Run:
    """One simulated run, and what its events tell."""

    def __init__(self, seed, *faults, requests=32, options=WIDE, **conditions):
        self.simulation = Simulation(
            Conditions(seed=seed, faults=faults, requests_per_engine=requests, engines=(options,), **conditions)
        )
        self.outcome = self.simulation.run()

    def of(self, kind):
        return [e for e in self.simulation.client.events if e.kind is kind]

    @property
    def ended(self):
        return sorted(e.request_id for e in self.of(EventKind.REQUEST_ENDED))

    @property
    def faults(self):
        return len(self.of(EventKind.ENGINE_PAUSED))


@pytest.mark.parametrize("seed", seeds(40))
@pytest.mark.parametrize("kind", [FaultKind.RAISE, FaultKind.KILL, FaultKind.HANG])
def test_a_poison_among_32_ends_alone_after_at_most_seven_faults(seed, kind):
    run = Run(seed, poison(f"0.{4 + seed % 28}", kind=kind))
    assert run.outcome.ended is None
    assert len(run.ended) == 1
    assert run.outcome.finished_requests == 31
    assert run.faults <= MOST_FAULTS


@pytest.mark.parametrize("seed", seeds(20))
@pytest.mark.parametrize("options", [NARROW, TWO_RANKS])
def test_it_does_so_where_not_everybody_fits_into_a_batch(seed, options):
    run = Run(seed, poison("0.9", rank=options.ranks - 1), requests=12, options=options)
    assert (run.outcome.ended, run.ended, run.outcome.finished_requests) == (None, ["0.9"], 11)
    assert run.faults <= MOST_FAULTS


@pytest.mark.parametrize("seed", seeds(20))
def test_of_two_at_once_each_ends_alone(seed):
    run = Run(seed, poison("0.17"), poison("0.9"), requests=32)
    assert (run.outcome.ended, run.ended, run.outcome.finished_requests) == (None, ["0.17", "0.9"], 30)


@pytest.mark.parametrize("seed", seeds(20))
def test_of_a_pair_no_request_ends(seed):
    run = Run(seed, poison("0.2", together=2), requests=24)  # 0.2, 0.20 to 0.23: any two of them
    assert (run.outcome.ended, run.ended, run.outcome.finished_requests) == (None, [], 24)


@pytest.mark.parametrize("seed", seeds(20))
@pytest.mark.parametrize("kind", [FaultKind.RAISE, FaultKind.KILL, FaultKind.HANG])
def test_the_only_one_there_is_ends_too(seed, kind):
    run = Run(seed, poison("0.0", kind=kind), requests=1)
    assert (run.outcome.ended, run.ended, run.faults) == (None, ["0.0"], 5)


@pytest.mark.parametrize("seed", seeds(20))
def test_one_with_an_unknown_error_ends_though_every_second_one_costs_a_process(seed):
    run = Run(seed, poison("0.9", message="CUDA error: unknown error"), requests=12)
    assert (run.outcome.ended, run.ended, run.outcome.finished_requests) == (None, ["0.9"], 11)
    assert run.faults <= MOST_FAULTS


@pytest.mark.parametrize("seed", seeds(40))
def test_one_whose_logits_are_no_numbers_is_named_and_ends_without_halving(seed):
    run = Run(seed, poison(f"0.{4 + seed % 28}", kind=FaultKind.NAN))
    assert (run.outcome.ended, len(run.ended), run.outcome.finished_requests) == (None, 1, 31)
    assert run.faults == 4


@pytest.mark.parametrize("seed", seeds(20))
def test_two_of_them_end_too(seed):
    run = Run(seed, poison("0.17", kind=FaultKind.NAN), poison("0.9", kind=FaultKind.NAN))
    assert (run.outcome.ended, run.ended, run.outcome.finished_requests) == (None, ["0.17", "0.9"], 30)


# ---- faults that are nobody's


def test_a_rank_that_computes_what_is_no_number_for_different_requests_gets_a_new_process():
    spoilt = [InjectionSpec(phase=Phase.FORWARD, kind=FaultKind.NAN, after_steps=n, request=f"0.{n}") for n in (4, 5)]
    runs = [Run(seed, *spoilt, requests=12) for seed in range(20)]
    assert all((r.outcome.ended, r.ended, r.outcome.finished_requests) == (None, [], 12) for r in runs)
    assert [r.outcome.worker_restarts for r in runs] == [r.faults // 2 for r in runs]
    assert sum(r.faults == 2 for r in runs) > 5  # in the others one of the two has finished by then


@pytest.mark.parametrize("seed", [529, 2308, 2868, 2976])
def test_faults_of_several_causes_close_together_end_no_request(seed):
    """In these seeds one burst begins a search and another one hits whoever runs alone, in new processes too.

    That nobody innocent is ended is a law, which `simulate` raises for.
    """
    outcome = simulate(seed)
    assert outcome.worker_restarts > 0
    assert outcome.recoveries >= 7


@pytest.mark.parametrize("seed", seeds(100))
def test_two_bursts_end_no_request_wherever_they_hit(seed):
    dice = random.Random(seed)
    bursts = [
        InjectionSpec(phase=phase, after_steps=dice.randint(2, 30), times=dice.randint(1, 6))
        for phase in dice.sample([Phase.FORWARD, Phase.SAMPLE_START, Phase.SCHEDULE_END, Phase.OUTPUT_START], 2)
    ]
    run = Run(seed, *bursts, requests=dice.choice([1, 2, 6, 12]), max_engine_restarts=3)
    assert (run.outcome.ended, run.ended) == (None, [])


@pytest.mark.parametrize("seed", seeds(30))
def test_on_a_bad_link_the_laws_hold_too(seed):
    weather = Weather(duplication=0.2, delay_s=0.1)
    run = Run(seed, poison("0.9"), InjectionSpec(phase=Phase.RECOVERY, after_steps=2), requests=12, weather=weather)
    assert run.outcome.ended is None
    assert run.outcome.finished_requests == 11


def test_the_retries_are_not_used_up_by_a_search_that_gets_on():
    run = Run(3, poison("0.7"))  # the simulated engines retry four times
    assert run.outcome.ended is None
    assert run.faults > 4
    decided = [e.reason for e in run.of(EventKind.DECISION_MADE)]
    assert [("not counted" in reason) for reason in decided][:2] == [False, False]
    assert all("not counted" in reason for reason in decided[2:])


def test_an_ended_request_is_named_with_the_incident():
    run = Run(1, poison("0.30"))
    [event] = run.of(EventKind.REQUEST_ENDED)
    assert (event.request_id, event.engine_id) == ("0.30", 0)
    assert "-engine0-epoch" in event.incident
    why = run.simulation.engines[0].why_ended("0.30")
    assert event.incident in why
    view = run.simulation.client.instance.view().engine(0)
    assert (view.ended_requests, view.suspects) == (1, 0)
