"""What leaves a rank past the fence, and which epochs the rank has left, as seen by another thread."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from holdfast.core.errors import RankFenced
from holdfast.core.faults.faults import Phase
from holdfast.core.faults.redaction import PublicText
from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.vllm.process.fence_flag import FenceFlag
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
    def report(self, fault: object, epoch: int, *, finishes: bool = False) -> None:
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


# ---- a failed rank that takes part


class Finisher:
    """Stands for the model runner: notes what is run for the peers."""

    def __init__(self, why_not: str | None = None, *, raises: bool = False) -> None:
        self.reason, self.raises = why_not, raises
        self.ran: list[str] = []

    def begin(self, planned: object = None) -> None:
        self.ran.append("begin")

    def end(self) -> None:
        self.ran.append("end")

    def why_not(self, fault_class: object, *, is_in_step: bool = True) -> str | None:
        return self.reason

    def finish(self) -> None:
        self._run("finish")

    def join(self, planned: object = None) -> None:
        self._run("join")

    def _run(self, what: str) -> None:
        if self.raises:
            raise ValueError(PublicText("again"))
        self.ran.append(what)


class Rank:
    """A fence with a flag that is read, and what the fence told and broke."""

    def __init__(self, why_not: str | None = None, *, raises: bool = False, is_read: bool = True) -> None:
        self.memory = bytearray([0, is_read])
        self.finisher = Finisher(why_not, raises=raises)
        self.communicators = FakeNetwork(2).rank(0)
        self.told: list[bool] = []
        self.fence = StepFence(
            0,
            0,
            self.communicators,
            flag=FenceFlag(self.memory),
            finisher=self.finisher,  # type: ignore[arg-type]
        )
        self.fence.reporter = self

    def report(self, fault: object, epoch: int, *, finishes: bool = False) -> None:
        self.told.append(finishes)

    def step(self, raises: bool = False, phase: Phase = Phase.FORWARD) -> str:
        return self.fence.fenced(phase, lambda *_: 1 // 0 if raises else "tokens")()

    def fails(self, phase: Phase = Phase.FORWARD) -> None:
        with pytest.raises(ZeroDivisionError):
            self.step(raises=True, phase=phase)

    def is_refused(self) -> None:
        with pytest.raises(RankFenced):
            self.step()


def test_a_failed_rank_takes_part_in_its_step_and_in_each_queued_step_until_the_restore() -> None:
    rank = Rank()
    rank.fails()
    assert (rank.told, rank.memory[0], rank.communicators.broken) == ([True], 1, False)
    rank.is_refused()
    assert rank.finisher.ran == ["begin", "finish", "join"]
    rank.fence.begin_restore(1)
    rank.fence.reopen(1)
    assert (rank.memory[0], rank.step()) == (0, "tokens")


def test_the_flag_is_raised_before_the_rank_takes_part() -> None:
    """A peer's reply follows from the first collective, and must not overtake the flag."""
    rank, seen = Rank(), []
    rank.finisher.finish = lambda: seen.append(rank.memory[0])  # type: ignore[method-assign]
    rank.fails()
    assert seen == [1]


@pytest.mark.parametrize("rank", [Rank("inside a collective"), Rank(is_read=False)], ids=["unfit", "flag-not-read"])
def test_collectives_are_broken_where_a_step_cannot_be_finished(rank: Rank) -> None:
    rank.fails()
    assert (rank.told, rank.communicators.broken, rank.finisher.ran) == ([False], True, ["begin"])
    rank.is_refused()
    assert rank.finisher.ran == ["begin"]


def test_collectives_are_broken_after_a_second_exception_while_finishing() -> None:
    rank = Rank(raises=True)
    rank.fails()
    assert (rank.told, rank.communicators.broken) == ([True, False], True)
    rank.is_refused()
    assert rank.told == [True, False]


def test_collectives_are_broken_when_a_queued_step_cannot_be_joined() -> None:
    rank = Rank()
    rank.fails()
    rank.finisher.raises = True
    rank.is_refused()
    assert (rank.told, rank.communicators.broken) == ([True, False], True)


def test_a_rank_that_is_told_to_stop_takes_part_no_more() -> None:
    rank = Rank()
    rank.fails()
    rank.fence.stop(0)
    rank.is_refused()
    assert rank.finisher.ran == ["begin", "finish"]


def test_a_fault_of_an_output_leaves_the_step_of_the_main_thread_to_itself() -> None:
    """That step goes on with real data; its result is refused, and later steps are joined."""
    rank = Rank()
    output = rank.fence.fenced(Phase.SAMPLE_START, lambda: asynchronous(lambda: 1 // 0))()
    rank.fence.complete(output, lambda compute: compute())
    assert (rank.told, rank.finisher.ran, rank.memory[0]) == ([True], [], 1)
    rank.is_refused()
    assert rank.finisher.ran == ["join"]


@pytest.mark.parametrize(("why_not", "broken"), [(None, False), ("inside a collective", True)])
def test_a_step_that_raises_beside_a_failed_output_is_finished_or_broken_too(why_not: str | None, broken: bool) -> None:
    rank = Rank()

    def step() -> None:
        rank.fence.close(ValueError(PublicText("an output")), Phase.SAMPLE_END, is_in_step=False)
        rank.finisher.reason = why_not
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        rank.fence.fenced(Phase.FORWARD, step)()
    assert rank.communicators.broken is broken
    assert ("finish" in rank.finisher.ran) is not broken
