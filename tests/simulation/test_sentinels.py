"""The shipped sentinels on virtual time: whatever is planned, the laws hold, and the runs see everything."""

import json
import logging
import os
from pathlib import Path

import pytest

from holdfast.chaos.simulation import LawBroken
from holdfast.chaos.simulation.sentinels import (
    EFFECTS,
    Kind,
    Planned,
    Schedule,
    Tally,
    draw_schedule,
    explain,
    shrink,
    simulate,
)
from holdfast.core.states import TRANSITIONS
from holdfast.hosts.fake import FakeEngineCore
from support.seeds import seeds

BLOCKS = 20
A_BLOCK = seeds(220)[::BLOCKS]


@pytest.fixture(autouse=True)
def quiet():
    """Keep the expected tracebacks of failed effects out of the way: formatting them costs more than a run."""
    logger = logging.getLogger("holdfast")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


TALLY = Tally()


@pytest.fixture(scope="module", autouse=True)
def tally_of_this_process():
    """Leave what this process has seen where `make nightly PART=simulation` adds it up."""
    yield
    if folder := os.environ.get("HOLDFAST_TALLY"):
        (Path(folder) / f"{os.getpid()}.json").write_text(json.dumps(TALLY.figures()))


@pytest.mark.parametrize("first", A_BLOCK)
def test_whatever_is_planned_the_laws_hold(first):
    for seed in range(first, first + BLOCKS):
        schedule = draw_schedule(seed)
        try:
            TALLY.add(simulate(schedule).tally)
        except LawBroken as broken:
            pytest.fail(explain(seed, broken, schedule), pytrace=False)


def test_the_schedules_between_them_see_most_that_can_happen():
    tally = TALLY if TALLY.runs >= 100 else Tally()  # fewer when tests are spread over processes
    for seed in range(0 if tally is TALLY else 100):
        tally.add(simulate(draw_schedule(seed)).tally)
    assert tally.faults >= 3 * tally.runs
    assert len(tally.transitions) > len(TRANSITIONS) // 2
    assert len(tally.failed_effects) > len(EFFECTS) // 2


def test_what_is_planned_for_a_failing_effect_is_planned_again_with_the_seed():
    assert [draw_schedule(seed) for seed in range(50)] == [draw_schedule(seed) for seed in range(50)]


def test_a_seed_replays_its_run():
    assert [simulate(draw_schedule(seed)) for seed in range(8)] == [simulate(draw_schedule(seed)) for seed in range(8)]


def test_a_failing_schedule_is_shrunk_to_what_breaks_the_law():
    kept = shrink(tuple(range(9)), lambda some: {2, 7} <= set(some))
    assert kept == (2, 7)


def test_a_broken_law_names_the_line_that_replays_it(monkeypatch):
    add = FakeEngineCore.add
    monkeypatch.setattr(FakeEngineCore, "add", lambda self, *about: add(self, *about[:3]))
    planned = (*(Planned(float(at), Kind.KILL_ENGINE) for at in range(1, 10)), Planned(9.5, Kind.CLOCK))
    schedule = Schedule(seed=3, planned=planned)
    with pytest.raises(LawBroken) as broken:
        simulate(schedule)
    told = explain(3, broken.value, schedule)
    assert "replay: python -m holdfast.chaos.simulation.sentinels 3 --only" in told
    assert "gets the tokens of a fault-free run" in told
