"""Model runner V2 over many ranks, sampled: Triton's interpreter makes every step take ten times as long here."""

from __future__ import annotations

import pytest

from holdfast.bench.topologies import MOE_EP, PP2, TP2
from holdfast.chaos.loads import few_tokens
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from integration.helpers.many_ranks import Bench, injected
from integration.helpers.servers import V2_ASYNC, V2_SYNC, Servers, in_matrix_but, served_name

pytestmark = [pytest.mark.host, pytest.mark.server]

SAMPLED = in_matrix_but((MOE_EP, V2_ASYNC), [(TP2, V2_SYNC), (TP2, V2_ASYNC), (PP2, V2_ASYNC), (MOE_EP, V2_ASYNC)])


@pytest.fixture(params=SAMPLED, ids=served_name)
def bench(request: pytest.FixtureRequest, servers: Servers) -> Bench:
    return Bench(servers, *request.param, few_tokens)


@pytest.mark.parametrize(("place", "phase"), [(0, Phase.FORWARD), (1, Phase.STEP_END)])
def test_a_fault_on_any_rank_changes_no_token(bench: Bench, place: int, phase: Phase) -> None:
    engine, rank = bench.topology.places[place]
    events = bench.assert_exact_through(InjectionSpec(phase=phase, engine_id=engine, rank=rank, after_steps=5))
    [fault] = injected(events)
    assert (fault["engine_id"], fault["rank"], fault["phase"]) == (engine, rank, phase)
