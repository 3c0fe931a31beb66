"""Which faults the recovery benchmark injects into which topology: tables, and a seeded draw for a soak. Pure data."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from holdfast.bench.harms import Harm
from holdfast.bench.loads import LoadKind
from holdfast.bench.topologies import Topology
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec

# Lockstep engines agree whether to go on at a wave's first step and then every so many: the host's own number.
STEPS_PER_AGREEMENT = 16
LATEST_SHARE = 0.6  # of the answers: a soak's faults come while every stream still runs


@dataclass(frozen=True)
class Scenario:
    """A fault at a place under a load; `share` is the part of the answers' length to write before the fault."""

    name: str
    phase: Phase
    load: LoadKind = LoadKind.SHORT_PROMPTS
    share: float = 0.4
    engine_id: int = 0
    rank: int = 0
    harm: Harm = Harm.EXCEPTION

    def injection(self, tokens: int) -> InjectionSpec:
        return self.harm.injection(self.phase, self.engine_id, self.rank, self.after_steps(tokens))

    def after_steps(self, tokens: int) -> int:
        return passages(self.phase, int(tokens * self.share))

    def at(self, engine_id: int, rank: int) -> Scenario:
        return replace(self, engine_id=engine_id, rank=rank)


def passages(phase: Phase, steps: int) -> int:
    """Return how often a phase is passed in a number of steps."""
    return steps // STEPS_PER_AGREEMENT if phase is Phase.DP_SYNC else steps


_IN_EVERY_RANK = (
    Scenario("start of a step", Phase.STEP_START),
    Scenario("forward pass", Phase.FORWARD),
    Scenario("after the forward pass", Phase.STEP_END),
    Scenario("first step", Phase.FORWARD, share=0),
)
_NAMES = {Harm.KILL_WORKER: "worker killed", Harm.KILL_ENGINE: "engine core killed"}
_IN_EVERY_ENGINE_CORE = (Scenario("after scheduling", Phase.SCHEDULE_END),)
_IN_LOCKSTEP = (Scenario("before the agreement", Phase.DP_SYNC),)

OF_ONE_RANK = (
    Scenario("start of a step", Phase.STEP_START),
    Scenario("forward pass", Phase.FORWARD),
    Scenario("after the forward pass", Phase.STEP_END),
    Scenario("before sampling", Phase.SAMPLE_START),
    Scenario("after sampling", Phase.SAMPLE_END),
    Scenario("before scheduling", Phase.SCHEDULE_START),
    Scenario("after scheduling", Phase.SCHEDULE_END),
    Scenario("before output processing", Phase.OUTPUT_START),
    Scenario("inside output processing", Phase.OUTPUT_REQUEST),
    Scenario("after output processing", Phase.OUTPUT_END),
    Scenario("first prefill step", Phase.FORWARD, share=0),
    Scenario("chunked prefill", Phase.FORWARD, LoadKind.LONG_PROMPTS, share=0.02),
)


def scenarios_of(topology: Topology, harm: Harm = Harm.EXCEPTION) -> tuple[Scenario, ...]:
    """Return the scenarios of a topology.

    Exceptions: on one rank, every phase; on many ranks, some phases on each rank. Other faults: each process in turn.
    """
    if harm is Harm.EXCEPTION:
        return OF_ONE_RANK if topology.ranks == 1 else tuple(_of_many_ranks(topology))
    scenario = Scenario(_NAMES.get(harm, harm.value), harm.usual_phase, harm=harm)
    if harm is Harm.KILL_ENGINE:
        return tuple(scenario.at(engine_id, 0) for engine_id in range(topology.engines))
    return tuple(scenario.at(*place) for place in topology.places)


def _of_many_ranks(topology: Topology) -> Iterator[Scenario]:
    for engine_id, rank in topology.places:
        yield from (scenario.at(engine_id, rank) for scenario in _IN_EVERY_RANK)
    for engine_id in range(topology.engines):
        in_engine = (*_IN_EVERY_ENGINE_CORE, *(_IN_LOCKSTEP if topology.lockstep else ()))
        yield from (scenario.at(engine_id, 0) for scenario in in_engine)


Chosen = tuple[tuple[Topology, tuple[Scenario, ...]], ...]


def choose_scenarios(topologies: Sequence[Topology], wanted: Sequence[str], harm: Harm = Harm.EXCEPTION) -> Chosen:
    """Return the scenarios of each topology with a matching name or phase; without words, all.

    A topology without a match is left out. Raises `ValueError` for a word without any match.
    """
    every = [(topology, scenarios_of(topology, harm)) for topology in topologies]
    for word in wanted:
        if not any(_matches(one, word) for _, scenarios in every for one in scenarios):
            names = ", ".join(dict.fromkeys(one.name for _, scenarios in every for one in scenarios))
            raise ValueError(f"no scenario matches {word!r}; known: {names}")
    chosen = ((topology, tuple(_chosen(scenarios, wanted))) for topology, scenarios in every)
    return tuple((topology, scenarios) for topology, scenarios in chosen if scenarios)


def _chosen(scenarios: Iterable[Scenario], wanted: Sequence[str]) -> Iterator[Scenario]:
    return (one for one in scenarios if not wanted or any(_matches(one, word) for word in wanted))


def _matches(scenario: Scenario, word: str) -> bool:
    return word.lower() in scenario.name or word.lower() == scenario.phase


def random_scenarios(topology: Topology, count: int, seed: int) -> tuple[Scenario, ...]:
    """Draw faults at random ranks, phases and steps; the same seed draws the same faults."""
    draw = random.Random(f"{topology.name} {seed}")
    phases = [phase for phase in _STEP_PHASES if topology.lockstep or phase is not Phase.DP_SYNC]
    return tuple(_draw(draw, topology, phases) for _ in range(count))


# Faults inside a recovery need a fault before them.
_STEP_PHASES = [phase for phase in Phase if phase not in (Phase.RECOVERY, Phase.REBUILD, Phase.RESUME)]


def _draw(draw: random.Random, topology: Topology, phases: Sequence[Phase]) -> Scenario:
    engine_id, rank = draw.choice(topology.places)
    phase = draw.choice(phases)
    share = round(draw.uniform(0, LATEST_SHARE), 3)
    return Scenario(f"{phase}", phase, share=share, engine_id=engine_id, rank=rank if phase.in_worker else 0)
