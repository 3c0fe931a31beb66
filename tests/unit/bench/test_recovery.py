"""The recovery benchmark goes through its topologies one after another, and loses nothing of what it measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.bench import recovery
from holdfast.bench.faulted_run import Reference, RunResult
from holdfast.bench.figures import RecoveryDocument
from holdfast.bench.recovery import RecoverySettings, measure_recovery
from holdfast.bench.restart import Restart
from holdfast.bench.scenarios import Scenario, choose_scenarios, random_scenarios
from holdfast.bench.topologies import DP2, TP2, Topology
from holdfast.chaos.checker import compare_runs
from holdfast.chaos.history import History
from holdfast.chaos.processes import SessionUsage
from holdfast.chaos.server import ServerFailed, ServerSpec
from holdfast.core.faults.injection import InjectionSpec
from support.incidents import incident

RESTART = Restart(stop_s=1.0, start_s=18.0, first_token_s=1.0)


@dataclass
class FakeServer:
    """A server that is there at once; `World` says what goes wrong with it."""

    spec: ServerSpec
    url: str = "http://127.0.0.1:9"
    pid: int = 0
    start_s: float = 0.1
    exit_code: int | None = None


class FakeControl:
    def __init__(self, _url: str) -> None: ...

    async def __aenter__(self) -> FakeControl:
        return self

    async def __aexit__(self, *_: object) -> None: ...


class FakeLoad:
    def __init__(self, _url: str, specs: Sequence[Any]) -> None:
        self.specs = specs

    async def run(self) -> list[History]:
        return []


@dataclass
class World:
    """Everything that the benchmark reaches out to, and what it did there."""

    does_not_start: str | None = None
    orphans: list[int] = field(default_factory=list)
    references: Iterator[list[int]] = field(default_factory=lambda: iter([[1, 2]] * 1000))
    started: list[str] = field(default_factory=list)
    stopped: int = 0
    injected: list[InjectionSpec] = field(default_factory=list)
    judged: list[Reference] = field(default_factory=list)

    def server(self, spec: ServerSpec) -> Any:
        world, name = self, spec.log.stem.removeprefix("recovery-")

        class Server(FakeServer):
            def start(self) -> Server:
                if world.does_not_start == name:
                    raise ServerFailed("the server ended with exit code 3")
                world.started.append(name)
                return self

            def stop(self) -> None:
                world.stopped += 1

            def orphans(self) -> list[int]:
                return world.orphans

        return Server(spec)

    async def run_reference(self, _load: object, _control: object) -> Reference:
        tokens = next(self.references)
        return Reference([History("answer 1", 0.0, tokens, [float(n) for n in tokens], finish_reason="length")])

    async def run_faulted(
        self, _load: object, _control: object, reference: Reference, injection: InjectionSpec, _topology: Topology
    ) -> RunResult:
        self.injected.append(injection)
        self.judged.append(reference)
        comparison = compare_runs(reference.histories, reference.histories)
        events = tuple(incident(1.0, 1.2, injection.engine_id))
        return RunResult(comparison, {"answer 1": 0.2}, 0.01, 0.0, events, reference.problems)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    world = World()
    fakes = {
        "Server": world.server,
        "Control": FakeControl,
        "Load": FakeLoad,
        "run_reference": world.run_reference,
        "run_faulted": world.run_faulted,
        "measure_restart": lambda server: (server, RESTART),
        "session_usage": lambda _pid: SessionUsage(1.0, 2, 3, 4),
        "session_segments": lambda _pid: set(),
        "server_spec": lambda _topology, log, *_: ServerSpec(model=tmp_path, log=log),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(recovery, name, fake)
    return world


def measure(settings: RecoverySettings, *topologies: Topology, words: Sequence[str] = ("first",)) -> RecoveryDocument:
    return measure_recovery(replace(settings, chosen=choose_scenarios(topologies, words)))


@pytest.fixture
def settings(tmp_path: Path) -> RecoverySettings:
    return RecoverySettings(chosen=(), logs=tmp_path, say=lambda _text: None)


def test_each_topology_gets_a_server_and_every_rank_its_fault(world: World, settings: RecoverySettings) -> None:
    """One server after another, each ended, each with its own restart."""
    document = measure(settings, TP2, DP2)
    assert (world.started, world.stopped) == (["tp2", "dp2"], 2)
    assert [(spec.engine_id, spec.rank) for spec in world.injected] == [*TP2.places, *DP2.places]
    assert [figures.restart for figures in document.topologies] == [RESTART, RESTART]
    assert document.lawful


def test_a_server_that_does_not_start_costs_the_others_nothing(world: World, settings: RecoverySettings) -> None:
    """It is told, and the document is not lawful."""
    world.does_not_start = "tp2"
    broken, whole = measure(settings, TP2, DP2).topologies
    assert broken.failure == "the server ended with exit code 3"
    assert not broken.lawful
    assert whole.lawful
    assert len(whole.runs) == 2


def test_what_a_server_leaves_behind_is_told(world: World, settings: RecoverySettings) -> None:
    """By process id."""
    world.orphans = [77]
    [figures] = measure(settings, TP2).topologies
    assert figures.left_behind == ("process 77",)
    assert not figures.lawful


def test_damage_that_stays_is_found_without_a_fault(world: World, settings: RecoverySettings) -> None:
    """A fault-free run that differs from the first one makes its run unlawful, though the two runs are equal."""
    world.references = iter([[1, 2], [1, 2], [1, 9]])
    [figures] = measure(settings, TP2).topologies
    assert [bool(run.problems) for run in figures.runs] == [False, True]
    assert figures.runs[1].problems[0].startswith("without a fault, answer 1: 1 tokens changed")


def test_a_soak_holds_every_run_against_the_first(world: World, settings: RecoverySettings) -> None:
    """One fault-free run serves all its faults."""
    world.references = iter([[1, 2]])
    drawn: tuple[Scenario, ...] = random_scenarios(TP2, 25, 3)
    document = measure_recovery(replace(settings, chosen=((TP2, drawn),), seed=3))
    assert len(document.topologies[0].runs) == 25
    assert len({id(reference) for reference in world.judged}) == 1
    assert document.seed == 3
    assert len(document.topologies[0].usage) == 10
