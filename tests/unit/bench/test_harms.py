"""What can be done to a server, and where it shows best."""

from __future__ import annotations

import pytest

from holdfast.bench.harms import Harm
from holdfast.bench.loads import LoadKind, make_load, poisoned
from holdfast.bench.topologies import DP2, ONE, Topology
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import MAX_TIMES, FaultKind


@pytest.mark.parametrize(
    ("harm", "topology", "phase", "elsewhere"),
    [
        (Harm.EXCEPTION, ONE, Phase.FORWARD, None),
        (Harm.KILL_WORKER, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
        (Harm.KILL_ENGINE, DP2, Phase.SCHEDULE_END, Phase.FORWARD),
        (Harm.HANG, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
        (Harm.OOM, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
        (Harm.POISON, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
    ],
)
def test_each_harm_has_a_place_where_it_shows_best(
    harm: Harm, topology: Topology, phase: Phase, elsewhere: Phase | None
) -> None:
    """A phase that another process passes is none of its own."""
    assert (harm.usual_topology, harm.usual_phase) == (topology, phase)
    assert harm.happens_at(phase)
    assert elsewhere is None or not harm.happens_at(elsewhere)


@pytest.mark.parametrize("harm", Harm)
def test_each_harm_is_a_kind_of_fault_and_has_words(harm: Harm) -> None:
    assert harm.kind.is_silent is (harm in {Harm.STOP, Harm.HANG, Harm.SPIN, Harm.DEADLOCK})
    assert harm.in_words and harm.heading


def test_a_poison_is_about_one_request_and_lasts_and_no_two_are_about_the_same() -> None:
    first, second = (Harm.POISON.injection(Phase.FORWARD, 1, 0, after_steps=7) for _ in range(2))
    assert (first.kind, first.engine_id, first.after_steps, first.times) == (FaultKind.RAISE, 1, 7, MAX_TIMES)
    assert first.request not in second.request
    assert Harm.EXCEPTION.injection(Phase.FORWARD, 0, 0, after_steps=7).request == ""


def test_the_last_request_of_the_engine_that_is_hurt_is_the_poison() -> None:
    specs = make_load(LoadKind.SHORT_PROMPTS, streams=4, tokens=9, engines=2)
    assert [spec.request_id for spec in poisoned(specs, 0, "poison")] == [None, None, "poison", None]
    alone = make_load(LoadKind.SHORT_PROMPTS, streams=2, tokens=9)
    assert [spec.request_id for spec in poisoned(alone, 0, "poison")] == [None, "poison"]
    assert poisoned(alone, 0, "") == alone
