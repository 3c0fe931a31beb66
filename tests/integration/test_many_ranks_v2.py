"""Model runner V2 over many ranks, sampled: Triton's interpreter makes every step take ten times as long here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast.bench.topologies import MOE_EP, PP2, TP2
from holdfast.core.faults import Phase
from holdfast.core.injection import InjectionSpec
from integration.conftest import V2_ASYNC, V2_SYNC, Servers
from integration.loads import few_tokens
from integration.test_many_ranks import Bench, injected

pytestmark = [pytest.mark.host, pytest.mark.server]

SAMPLED = [(TP2, V2_SYNC), (TP2, V2_ASYNC), (PP2, V2_ASYNC), (MOE_EP, V2_ASYNC)]


@pytest.fixture(scope="module", params=SAMPLED, ids=lambda p: f"{p[0].name}-{p[1].name}")
def bench(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Bench]:
    topology, kind = request.param
    with servers.of(topology, kind) as server:
        yield Bench(server, topology, kind, few_tokens)


@pytest.mark.parametrize(("place", "phase"), [(0, Phase.FORWARD), (1, Phase.STEP_END)])
def test_a_fault_on_any_rank_changes_no_token(bench: Bench, place: int, phase: Phase) -> None:
    engine, rank = bench.topology.places[place]
    events = bench.assert_exact_through(InjectionSpec(phase=phase, engine_id=engine, rank=rank, after_steps=5))
    [fault] = injected(events)
    assert (fault["engine_id"], fault["rank"], fault["phase"]) == (engine, rank, phase)
