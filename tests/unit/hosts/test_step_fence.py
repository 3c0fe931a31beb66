"""What leaves a rank past the fence, and which epochs the rank has left, as seen by another thread."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from holdfast.core.errors import RankFenced
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import PublicText
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.vllm.worker.fence import StepFence

pytestmark = pytest.mark.host


@pytest.fixture
def fence() -> StepFence:
    return StepFence(0, 0, FakeNetwork(2).rank(0))


def test_steps_of_a_broken_epoch_are_under_way_until_a_restore_begins(fence: StepFence) -> None:
    fence.stop(0)
    assert not fence.has_left(0)
    fence.begin_restore(1)
    assert fence.has_left(0)


def test_a_rank_stopped_during_a_restore_is_in_no_step(fence: StepFence) -> None:
    """The rank waits for its peers where groups are made, for as long as the rebuild may take."""
    fence.begin_restore(1)
    fence.stop(1)
    assert fence.has_left(1)


def test_after_a_restore_the_steps_of_the_new_epoch_count(fence: StepFence) -> None:
    fence.begin_restore(1)
    fence.reopen(1)
    fence.stop(1)
    assert not fence.has_left(1)
    assert fence.has_left(0)


# ---- results


def asynchronous(contents: object) -> SimpleNamespace:
    return SimpleNamespace(get_output=contents if callable(contents) else lambda: contents)


class Reports(list[str]):
    def report(self, fault: object, epoch: int) -> None:
        self.append(f"{fault.message} in epoch {epoch}")  # type: ignore[attr-defined]


def test_the_result_of_a_step_during_which_the_rank_was_stopped_is_refused(fence: StepFence) -> None:
    """An aborted communicator may let the step return as if nothing had happened."""

    def step() -> str:
        fence.stop(0)
        return "tokens"

    with pytest.raises(RankFenced, match="told to stop"):
        fence.fenced(Phase.FORWARD, step)()


def test_the_result_of_a_step_during_which_another_thread_reported_a_fault_is_refused(fence: StepFence) -> None:
    def step() -> str:
        fence.close(ValueError(PublicText("an earlier output")), Phase.SAMPLE_END)
        return "tokens"

    with pytest.raises(RankFenced, match="an earlier output"):
        fence.fenced(Phase.SAMPLE_START, step)()


def test_an_asynchronous_output_that_is_complete_after_the_rank_was_stopped_is_refused(fence: StepFence) -> None:
    output = fence.fenced(Phase.SAMPLE_START, lambda: asynchronous("tokens"))()
    fence.stop(0)
    assert isinstance(fence.complete(output, lambda compute: compute()), RankFenced)


def test_an_asynchronous_output_of_an_earlier_epoch_is_refused_and_is_no_fault_of_this_one(fence: StepFence) -> None:
    """The thread of the outputs may be behind the restore."""
    fence.reporter = reports = Reports()
    good, bad = (fence.fenced(Phase.SAMPLE_START, lambda: asynchronous(1))() for _ in range(2))
    bad.get_output = lambda: 1 // 0
    fence.stop(0)
    fence.begin_restore(1)
    fence.reopen(1)
    assert isinstance(fence.complete(good, lambda compute: compute()), RankFenced)
    assert isinstance(fence.complete(bad, lambda compute: compute()), ZeroDivisionError)
    assert reports == []
    assert fence.fenced(Phase.FORWARD, lambda: "tokens")() == "tokens"


def test_an_output_that_cannot_be_completed_fences_the_rank(fence: StepFence) -> None:
    fence.reporter = reports = Reports()
    output = fence.fenced(Phase.SAMPLE_START, lambda: asynchronous(lambda: 1 // 0))()
    assert isinstance(fence.complete(output, lambda compute: compute()), ZeroDivisionError)
    assert len(reports) == 1
    with pytest.raises(RankFenced):
        fence.fenced(Phase.FORWARD, lambda: "tokens")()
