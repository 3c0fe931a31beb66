"""On the CPU every topology serves, and its tokens are those of one rank with the same model.

Without fault tolerance: what is shown here is the ground that recovery of many ranks stands on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.bench.topologies import MOE, MOE_EP, PP2, TOPOLOGIES, ModelKind, Topology, one_rank
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.chaos.loads import LONG, fresh_salt
from holdfast.chaos.model import make_dense_model, make_moe_model
from holdfast.chaos.server import Server
from holdfast.chaos.streams import Load, StreamSpec
from integration.helpers.servers import Servers, in_matrix_but, run

pytestmark = [pytest.mark.host, pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]

MANY_RANKS = [topology for topology in TOPOLOGIES if topology.ranks > 1]
UNPROTECTED = "--no-enable-fault-tolerance"
OVER_GLOO = "runs over gloo instead of shared memory"


class Topologies:
    """Starts a server in any topology; the run of one rank is made once per model."""

    def __init__(self, servers: Servers, models: dict[ModelKind, Path]) -> None:
        self._servers, self._models = servers, models
        self._references: dict[ModelKind, list[History]] = {}

    def server(self, topology: Topology, *arguments: str) -> Server:
        spec = self._servers.spec(UNPROTECTED, *topology.arguments, *arguments)
        return self._servers.unstarted(replace(spec, model=self._models[topology.model], ready_timeout_s=400.0))

    def reference(self, topology: Topology) -> list[History]:
        if topology.model not in self._references:
            with self.server(one_rank(topology)) as server:
                self._references[topology.model] = run(Load(server.url, mixed_load()).run())
        return self._references[topology.model]


@pytest.fixture(scope="module")
def topologies(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Topologies:
    folder = tmp_path_factory.mktemp("models")
    return Topologies(servers, {"dense": make_dense_model(folder / "dense"), "moe": make_moe_model(folder / "moe")})


def mixed_load(tokens: int = 80) -> list[StreamSpec]:
    """Greedy and seeded, a pair, and prompts that are read in chunks; more streams than one engine gets."""
    salt = fresh_salt()

    def spec(name: str, prompt: str, **options: object) -> StreamSpec:
        return StreamSpec(name, prompt, max_tokens=tokens, cache_salt=salt, **options)  # type: ignore[arg-type]

    return [
        *(spec(f"greedy {n}", f"The keeper of boat {n}") for n in range(4)),
        spec("logprobs", "Once more, the signal", logprobs=2),
        spec("seeded", "A storm crosses", temperature=0.9, seed=7),
        spec("penalties", "What holds a boat? ", temperature=0.9, seed=11, repetition_penalty=1.2),
        spec("pair", "Every word at dawn", temperature=0.8, seed=5, n=2),
        spec("long", LONG + "first"),
        spec("long seeded", f"Second: {LONG}", temperature=0.7, seed=3),
    ]


@pytest.mark.parametrize("topology", in_matrix_but(MOE_EP, MANY_RANKS), ids=lambda t: t.name)
def test_its_tokens_are_those_of_one_rank(topologies: Topologies, topology: Topology) -> None:
    """Also in a second run, when every kernel is compiled and steps are fast."""
    expected = topologies.reference(topology)
    with topologies.server(topology) as server:
        first, second = (run(Load(server.url, mixed_load()).run()) for _ in range(2))
    for found in (first, second):
        verdict = compare_runs(expected, found)
        assert verdict.exact, verdict.reasons


@pytest.mark.matrix
def test_without_the_enablement_a_pipeline_fails_in_its_first_step(topologies: Topologies) -> None:
    """The host still needs it: if this test ever fails, that part of the enablement can go."""
    with topologies.server(PP2, "--no-cpu-enablement") as server:
        [history] = run(Load(server.url, [StreamSpec("any", "The keeper", max_tokens=4)]).run())
        log = server.spec.log.read_text()
    assert history.error is not None
    assert OVER_GLOO not in log


@pytest.mark.matrix
def test_without_the_enablement_a_mixture_of_experts_fails_in_its_first_step(topologies: Topologies) -> None:
    """The same for the collectives with unequal shares."""
    with topologies.server(MOE, "--no-cpu-enablement") as server:
        [history] = run(Load(server.url, [StreamSpec("any", "The keeper", max_tokens=4)]).run())
    assert history.error is not None
