"""What can be done to a server, and where it shows best."""

from __future__ import annotations

import pytest

from holdfast.bench.harms import Harm
from holdfast.bench.topologies import DP2, ONE, Topology
from holdfast.core.faults import Phase


@pytest.mark.parametrize(
    ("harm", "topology", "phase", "elsewhere"),
    [
        (Harm.EXCEPTION, ONE, Phase.FORWARD, None),
        (Harm.KILL_WORKER, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
        (Harm.KILL_ENGINE, DP2, Phase.SCHEDULE_END, Phase.FORWARD),
        (Harm.HANG, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
        (Harm.OOM, ONE, Phase.FORWARD, Phase.SCHEDULE_END),
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
