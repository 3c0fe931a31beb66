"""An engine core that has work and schedules nothing is found; whatever else takes time is not taken for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from holdfast.core.faults.classification import Classifier, fault_of
from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.standing import NothingScheduled, Planning, StandingDetector
from holdfast.core.stalls.step_deadlines import Limits

PERIOD_S = 0.1
LIMITS = Limits(standing_s=10.0, standing_turns=20)


@dataclass
class Story:
    """A watch on virtual time; `turns` and `steps` are those of each look."""

    detector: StandingDetector = field(default_factory=lambda: StandingDetector(LIMITS, PERIOD_S))
    now: float = 0.0
    turns: int = 0
    steps: int = 0
    found: list[tuple[float, NothingScheduled]] = field(default_factory=list)

    def look(
        self, ready: int, *, turns: int = 10, steps: int = 0, after_s: float = PERIOD_S, is_idle: bool = False
    ) -> None:
        self.now += after_s
        self.turns += turns
        self.steps += steps
        seen = Planning(self.turns, self.steps, is_idle)
        if (fault := self.detector.observe(self.now, seen, lambda: ready)) is not None:
            self.found.append((self.now, fault))

    def looks(self, seconds: float, ready: int, **each: Any) -> None:
        for _ in range(round(seconds / PERIOD_S)):
            self.look(ready, **each)


def test_requests_that_could_run_while_turns_plan_nothing_are_found_within_the_bound() -> None:
    story = Story()
    story.looks(3, ready=2, steps=1)
    story.looks(12, ready=2)
    [(at, fault)] = story.found
    assert 13.0 <= at <= 13.3
    assert str(fault) == "2 request(s) could run, and no step was planned for 10 s"


def test_as_long_as_nothing_changes_it_is_found_again_after_another_bound() -> None:
    story = Story()
    story.looks(31, ready=1)
    assert [round(at) for at, _ in story.found] == [10, 20, 30]


@pytest.mark.parametrize(
    "each",
    [
        {"ready": 2, "steps": 1},  # a server that works
        {"ready": 0},  # whoever is open waits for something from outside, or nobody is open
        {"ready": 2, "turns": 0},  # the busy loop is in a long call, such as an update of weights
    ],
)
def test_whatever_else_takes_time_is_no_stand(each: dict[str, Any]) -> None:
    story = Story()
    story.looks(60, **each)
    assert story.found == []


def test_a_busy_loop_that_waits_for_inputs_beside_requests_takes_no_turns_and_is_found() -> None:
    """Requests that are missing from every queue of the scheduler."""
    story = Story()
    story.looks(11, ready=1, turns=0, is_idle=True)
    assert len(story.found) == 1


def test_turns_are_counted_since_the_last_step() -> None:
    story = Story()
    story.looks(30, ready=1, steps=1)
    story.looks(15, ready=1, turns=0)
    assert story.found == []


@pytest.mark.parametrize("ends", [{"ready": 2, "steps": 1}, {"ready": 0}])
def test_a_step_or_a_reason_to_wait_begins_the_time_anew(ends: dict[str, Any]) -> None:
    story = Story()
    for _ in range(5):
        story.looks(9, ready=2)
        story.look(**ends)
    assert story.found == []


def test_a_machine_that_sleeps_is_no_stand() -> None:
    """A look that comes late counts as one that comes a little late."""
    story = Story()
    story.look(1)
    for _ in range(20):
        story.look(1, after_s=60.0)
    assert story.found == []


def test_requests_are_counted_only_while_no_step_ends() -> None:
    """A server that works pays for a look with two numbers."""
    counted: list[int] = []

    def count() -> int:
        counted.append(1)
        return 1

    detector = StandingDetector(LIMITS, PERIOD_S)
    for step, now in enumerate(_times(5.0), 1):
        detector.observe(now, Planning(step, step), count)
    assert counted == []


def test_the_fault_is_one_of_scheduling_and_its_class_leads_from_a_retry_to_a_new_engine_core() -> None:
    fault = fault_of(NothingScheduled(1, 10.0), Classifier(), engine_id=0, phase=NothingScheduled.phase)
    assert fault.phase is Phase.SCHEDULE_END
    assert fault.fault_class == "unknown"
    assert fault.message == "1 request(s) could run, and no step was planned for 10 s"


def _times(seconds: float, period_s: float = PERIOD_S) -> Iterable[float]:
    return (period_s * n for n in range(round(seconds / period_s)))
