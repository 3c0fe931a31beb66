"""The simulated instance for people: faults happen and are repaired, commands work; here on virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from holdfast.chaos.simulation.live import LiveInstance, LiveOptions
from holdfast.cli.simulated_server import sized
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol.commands import InjectFault, Pause, Resume
from holdfast.core.protocol.events import EventKind


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Iterator[LiveInstance]:
    instance = LiveInstance(LiveOptions(engines=2, ranks=4, pipeline_stages=2, fault_every_s=request.param))
    instance.begin()
    yield instance
    instance.close()


@pytest.mark.parametrize("live", [1.0], indirect=True)
def test_faults_happen_and_are_repaired(live: LiveInstance) -> None:
    live.time.advance_until(12.0)
    kinds = Counter(event.kind for event in live.history())
    assert kinds[EventKind.FAULT_REPORTED] + kinds[EventKind.ENGINE_LOST] >= 3
    assert kinds[EventKind.ENGINE_RECOVERED] + kinds[EventKind.ENGINE_RESTARTED] >= 3
    assert next(e.sequence for e in live.history(5)) == 6
    assert {e.pipeline_stages for e in live.view().engines} == {2}
    assert live.view().defeat is None


@pytest.mark.parametrize("live", [0.0], indirect=True)
def test_commands_are_carried_out(live: LiveInstance) -> None:
    live.time.advance_until(1.5)
    paused = live.submit(Pause(command_id="1", engine_ids=(1,)))
    live.time.advance_until(2.5)
    assert paused.result(0) is None
    assert [e.paused_by_operator for e in live.view().engines] == [False, True]
    resumed = live.submit(Resume(command_id="2"))
    armed = live.submit(InjectFault(command_id="3", spec=InjectionSpec(phase=Phase.FORWARD, rank=2)))
    live.time.advance_until(5.0)
    assert (resumed.result(0), armed.result(0)) == (None, None)
    assert [e.fault.rank for e in live.history() if e.kind is EventKind.FAULT_REPORTED and e.fault] == [2]


@pytest.mark.parametrize(
    ("ranks", "engines", "of_an_engine"), [(1, 1, 1), (2, 2, 1), (8, 2, 4), (7, 7, 1), (64, 8, 8), (1024, 128, 8)]
)
def test_ranks_are_spread_over_engines_of_one_size(ranks: int, engines: int, of_an_engine: int) -> None:
    options = sized(ranks, 0.0)
    assert options.engines * options.ranks == ranks
    assert (options.engines, options.ranks) == (engines, of_an_engine)
