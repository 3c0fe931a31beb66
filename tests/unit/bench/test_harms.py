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
    ],
)
def test_each_harm_has_a_place_where_it_shows_best(
    harm: Harm, topology: Topology, phase: Phase, elsewhere: Phase | None
) -> None:
    """A phase that another process passes is none of its own."""
    assert (harm.usual_topology, harm.usual_phase) == (topology, phase)
    assert harm.happens_at(phase)
    assert elsewhere is None or not harm.happens_at(elsewhere)
