"""An engine core announces its load and its wave to a new coordinator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.lockstep_wave import announce_to_coordinator


class EngineCore:
    """An engine core of a lockstep group, in wave 7."""

    has_coordinator, last_counts = True, (0, 0)

    def __init__(self, running: bool, unfinished: bool = False, paused: bool = False) -> None:
        self.current_wave, self.engines_running, self.ignore_start_dp_wave = 7, running, paused
        self.scheduler = SimpleNamespace(has_unfinished_requests=lambda: unfinished)
        self.sent: list[Any] = []
        self.output_queue = SimpleNamespace(put_nowait=self.sent.append)


@pytest.mark.parametrize(
    ("engine", "start", "complete"),
    [
        (EngineCore(running=True), 7, None),
        (EngineCore(running=False, unfinished=True), 7, None),
        (EngineCore(running=False), None, 6),
        (EngineCore(running=False, unfinished=True, paused=True), None, 6),
    ],
    ids=["running", "stepping alone", "idle", "paused by the host"],
)
def test_an_engine_core_announces_the_wave_that_runs_or_has_completed(
    engine: EngineCore, start: int | None, complete: int | None
) -> None:
    announce_to_coordinator(engine)
    [(client_index, outputs)] = engine.sent
    assert (client_index, outputs.start_wave, outputs.wave_complete) == (-1, start, complete)
    assert engine.last_counts is None  # differs from every count, so that the counts are sent again


def test_an_engine_core_without_waves_announces_only_its_counts() -> None:
    engine = SimpleNamespace(has_coordinator=True, last_counts=(1, 1))
    announce_to_coordinator(engine)
    assert engine.last_counts is None
