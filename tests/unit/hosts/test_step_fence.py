"""Which epochs the fence of a rank has left, as seen by another thread."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

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
