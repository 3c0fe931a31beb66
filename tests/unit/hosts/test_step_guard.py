"""What a rank's guard knows of the epochs of its steps, for whoever looks at the main thread from beside it."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

from holdfast.hosts.fake.communicators import FakeNetwork
from holdfast.hosts.vllm.worker.worker import StepGuard

pytestmark = pytest.mark.host


@pytest.fixture
def guard() -> StepGuard:
    return StepGuard(0, 0, FakeNetwork(2).rank(0))


def test_steps_of_a_broken_epoch_are_under_way_until_a_restore_begins(guard: StepGuard) -> None:
    guard.stop(0)
    assert not guard.is_done_with(0)
    guard.enter(1)
    assert guard.is_done_with(0)


def test_who_is_stopped_while_it_meets_its_peers_is_in_no_step(guard: StepGuard) -> None:
    """It waits for them where groups are made, which may take as long as the rebuild may."""
    guard.enter(1)
    guard.stop(1)
    assert guard.is_done_with(1)


def test_once_it_is_let_in_the_steps_of_the_new_epoch_count(guard: StepGuard) -> None:
    guard.enter(1)
    guard.lift(1)
    guard.stop(1)
    assert not guard.is_done_with(1)
    assert guard.is_done_with(0)
