"""A chaos run's plan: the same seed kills the same kinds, each in its turn; and which process is which."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.chaos import campaign as module
from holdfast.chaos.campaign import Campaign, CampaignSettings, draw_kinds
from holdfast.chaos.control import ControlFailed
from holdfast.chaos.history import History
from holdfast.chaos.processes import SessionUsage
from holdfast.chaos.victims import ProcessKind, Victim, client_ports, find_victims, kind_of
from holdfast.core.errors import WorldError

K = ProcessKind


def test_every_kind_has_its_turn_and_a_seed_replays_the_order() -> None:
    """As often as the others."""
    first, again = (list(itertools.islice(draw_kinds(3, list(K)), 20)) for _ in range(2))
    assert first == again
    assert all(set(first[begin : begin + len(K)]) == set(K) for begin in range(0, 20, len(K)))
    assert first != list(itertools.islice(draw_kinds(4, list(K)), 20))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("VLLM::Worker", K.WORKER),
        ("VLLM::Worker_TP0", K.WORKER),
        ("VLLM::Worker_DP1_EP1", K.WORKER),
        ("VLLM::Standby_TP0", K.STANDBY),
        ("VLLM::EngineCore", K.ENGINE_CORE),
        ("VLLM::EngineCore_DP1", K.ENGINE_CORE),
        ("VLLM::DP_Coordinator", K.COORDINATOR),
        ("VLLM::DPCoordinator", K.COORDINATOR),
        ("VLLM::ApiServer_0", K.API_SERVER),
        ("VLLM::APIServer_1", K.API_SERVER),
        ("python3.11", None),
        ("VLLM::Work", None),
    ],
)
def test_processes_are_known_by_their_names(name: str, kind: ProcessKind | None) -> None:
    """One that comes or goes has no name, or half of one."""
    assert kind_of(name) is kind


def test_processes_of_others_are_never_found() -> None:
    """Only what a server started, whatever else runs on the machine; none where there is no server."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        assert find_victims(bystander.pid) == []
        bystander.kill()
    assert find_victims(2**22 + 1) == []
    assert client_ports(2**22 + 1, 80) == frozenset()


class World:
    """A server that comes back at once, or never."""

    def __init__(
        self, *, heals: bool = True, exit_code: int | None = None, answers: Iterator[int] | None = None
    ) -> None:
        self.heals, self.exit_code, self.answers = heals, None, answers or itertools.repeat(1)
        self.url, self.port, self.pid = "http://127.0.0.1:9", 9, 1
        self.pids = itertools.count(100)
        self.living = [Victim(K.WORKER, next(self.pids), "VLLM::Worker"), Victim(K.STANDBY, 2, "VLLM::Standby")]
        self.killed: list[Victim] = []

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def unwell(self) -> str | None:
        if len(self.killed) == 1 and next(self.pids) % 2:
            raise ControlFailed("the API server that was asked is gone")
        return None

    async def await_standbys(self) -> None: ...

    async def run(self) -> list[History]:
        await asyncio.sleep(0.01)
        return [History("one", 0.0, [next(self.answers)], [1.0], finish_reason="length")]

    def kill(self, victim: Victim) -> bool:
        self.killed.append(victim)
        self.living.remove(victim)
        if self.heals:
            self.living.append(Victim(victim.kind, next(self.pids), victim.name))
        return True


def campaign_in(world: World, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Campaign:
    fakes = {
        "Control": lambda _url: world,
        "Load": lambda _url, _specs: world,
        "find_victims": lambda _pid: list(world.living),
        "kill": world.kill,
        "usage_by_process": lambda _pid: {1: SessionUsage(0.0, 1, 1, 1)},
        "session_segments": lambda _pid: set(),
        "CALM_S": 0.0,
        "POLL_S": 0.001,
        "HEAL_TIMEOUT_S": 0.05,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    settings = CampaignSettings(seed=1, minutes=0.01, period_s=0.05, say=lambda _text: None, **more)
    return Campaign(world, settings)  # type: ignore[arg-type]


def test_processes_are_killed_one_after_another_while_answers_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only kinds that there are; each has healed before the next."""
    run = campaign_in(world := World(), monkeypatch)
    asyncio.run(run.run())
    assert {victim.kind for victim in world.killed} == {K.WORKER, K.STANDBY}
    assert len(run.kills) > 3
    assert all(kill.healed_s is not None for kill in run.kills)
    assert run.tally.exact > 3
    assert (run.problems, run.tally.problems) == ([], [])


def test_what_does_not_heal_ends_the_run_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded."""
    run = campaign_in(World(heals=False), monkeypatch, kinds=(K.WORKER,))
    asyncio.run(run.run())
    assert len(run.kills) == 1
    assert run.kills[0].healed_s is None
    assert run.problems[0] == "not healthy in time: missing: 1 worker"


def test_a_changed_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among many."""
    answers = itertools.chain([1] * 4, [2], itertools.repeat(1))
    run = campaign_in(World(answers=answers), monkeypatch)
    asyncio.run(run.run())
    assert run.tally.wrong == 1


@pytest.mark.parametrize(
    ("world", "kinds", "said"),
    [
        (World(answers=iter([1, 2, 1])), (K.WORKER,), "answers differ between fault-free runs"),
        (World(), (K.COORDINATOR,), "no process of the chosen kinds"),
    ],
)
def test_a_run_that_could_prove_nothing_does_not_begin(
    world: World, kinds: tuple[ProcessKind, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that differ without a fault, or nothing to kill."""
    run = campaign_in(world, monkeypatch, kinds=kinds)
    with pytest.raises(WorldError, match=said):
        asyncio.run(run.run())
    assert world.killed == []
