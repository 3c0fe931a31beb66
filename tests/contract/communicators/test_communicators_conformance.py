"""One suite for every kind of communicators: what the sentinels rely on, over gloo and in memory."""

from __future__ import annotations

import time

import pytest

from contract.communicators.ranks import (
    LONG_S,
    all_reduce,
    all_reduce_on_and_on,
    break_all,
    broken,
    rebuild,
    unrebuildable,
    waits_in,
)

SOON_S = 0.1


def blocked(stage, rank):
    """Start a collective on a rank that waits for its peer."""
    pending = rank.start(all_reduce, 1.0)
    time.sleep(0.05)
    assert not pending.done()
    return pending


def test_whole_communicators_add_up(stage):
    assert [outcome.value for outcome in stage.both(all_reduce, 2.0)] == [4.0, 4.0]
    assert stage.first.now(broken).value is False


def test_everything_here_can_be_rebuilt(stage):
    assert stage.first.call(unrebuildable).value == ()


def test_a_break_releases_the_collective_that_hangs_here(stage):
    pending = blocked(stage, stage.first)
    done = stage.first.now(break_all)
    outcome = pending.result(LONG_S)
    assert outcome.error
    assert outcome.ended_at - done.ended_at < SOON_S
    assert done.value > 0


def test_a_break_releases_the_collective_that_hangs_at_the_peer(stage):
    pending = blocked(stage, stage.second)
    done = stage.first.now(break_all)
    outcome = pending.result(LONG_S)
    assert outcome.error
    assert outcome.ended_at - done.ended_at < SOON_S


@pytest.mark.parametrize("who", [0, 1], ids=["here", "at the peer"])
def test_after_a_break_a_later_collective_fails_at_once(stage, who):
    stage.first.now(break_all)
    outcome = stage.ranks[who].call(all_reduce, 1.0)
    assert outcome.error
    assert outcome.took_s < SOON_S


def test_after_a_rebuild_collectives_add_up_again(stage):
    pending = blocked(stage, stage.second)
    stage.first.now(break_all)
    assert stage.first.now(broken).value is True
    assert pending.result(LONG_S).error
    assert [outcome.error for outcome in stage.rebuild()] == ["", ""]
    assert [outcome.value for outcome in stage.both(all_reduce, 3.0)] == [6.0, 6.0]
    assert stage.first.now(broken).value is False


def test_a_rendezvous_that_closes_after_the_rebuild_is_not_missed(stage):
    for total in (6.0, 10.0):
        stage.first.now(break_all)
        rendezvous = stage.rendezvous()
        waiting = stage.first.start(rebuild, rendezvous, 10.0)
        assert stage.second.call(rebuild, rendezvous, 10.0).error == ""
        assert waiting.result(LONG_S).error == ""
        stage.world.close_rendezvous(rendezvous.epoch)
        outcomes = stage.both(all_reduce, 3.0 if total == 6.0 else 5.0)
        assert [outcome.value for outcome in outcomes] == [total, total]


def test_communicators_that_nobody_broke_can_be_rebuilt(stage):
    assert [outcome.error for outcome in stage.rebuild()] == ["", ""]
    assert [outcome.value for outcome in stage.both(all_reduce, 1.0)] == [2.0, 2.0]


def test_two_breaks_are_one(stage):
    assert stage.first.now(break_all).value > 0
    stage.first.call(all_reduce, 1.0)
    again = stage.first.now(break_all)
    assert (again.value, again.error) == (0, "")
    assert [outcome.error for outcome in stage.rebuild()] == ["", ""]
    assert stage.first.now(broken).value is False


def test_a_rank_of_an_older_epoch_cannot_join(stage):
    older = stage.rendezvous()
    newer = stage.rendezvous()
    waiting = stage.first.start(rebuild, newer, 10.0)
    late = stage.second.call(rebuild, older, 10.0)
    assert late.error == "RecoveryFailed"
    assert late.took_s < 1.0
    assert not waiting.done()
    assert stage.second.call(rebuild, newer, 10.0).error == ""
    assert waiting.result(LONG_S).error == ""


def test_closing_the_rendezvous_releases_who_waits_in_it(stage):
    rendezvous = stage.rendezvous()
    waiting = stage.first.start(rebuild, rendezvous, LONG_S)
    stage.await_come(rendezvous)
    assert not waiting.done()
    closed_at = time.monotonic()
    stage.world.close_rendezvous(rendezvous.epoch)
    outcome = waiting.result(LONG_S)
    assert outcome.error == "RecoveryFailed"
    assert outcome.ended_at - closed_at < 1.0


def test_a_peer_that_never_comes_is_not_waited_for_beyond_the_timeout(stage):
    outcome = stage.first.call(rebuild, stage.rendezvous(), 0.3)
    assert outcome.error == "RecoveryFailed"
    assert 0.25 < outcome.took_s < 1.0


def test_a_rebuild_after_a_failed_one_works(stage):
    stage.second.now(break_all)
    for _ in range(2):
        assert stage.first.call(rebuild, stage.rendezvous(), 0.1).error == "RecoveryFailed"
    assert stage.first.call(all_reduce, 1.0).error
    assert [outcome.error for outcome in stage.rebuild()] == ["", ""]
    assert [outcome.value for outcome in stage.both(all_reduce, 5.0)] == [10.0, 10.0]


def test_a_break_during_a_rebuild_counts_against_it(stage):
    rendezvous = stage.rendezvous()
    waiting = stage.first.start(rebuild, rendezvous, 10.0)
    stage.await_come(rendezvous)
    stage.first.now(break_all)
    stage.second.start(rebuild, rendezvous, 10.0)
    assert waiting.result(LONG_S).error == "RecoveryFailed"
    assert stage.first.now(broken).value is True
    outcome = stage.second.call(all_reduce, 1.0)
    assert outcome.error
    assert outcome.took_s < SOON_S


def test_a_break_in_the_middle_of_messages_leaves_nobody_waiting(gloo):
    """A break during a write must end the collective on both ranks: a quarter of such breaks once did not."""
    for numbers in (64, 20_000) * 8:
        under_way = [rank.start(all_reduce_on_and_on, numbers) for rank in gloo.ranks]
        time.sleep(0.02)
        for rank in gloo.ranks:
            rank.now(break_all)
        assert all(pending.result(LONG_S).error for pending in under_way)
        assert [outcome.error for outcome in gloo.rebuild()] == ["", ""]


def test_who_waits_in_a_collective_is_seen_from_beside_it_until_it_raises(gloo):
    pending = blocked(gloo, gloo.first)
    seen = [gloo.first.now(waits_in).value for _ in range(2)]
    assert seen[0] == seen[1]
    assert seen[0].startswith("all_reduce (call ")
    gloo.first.now(break_all)
    assert pending.result(LONG_S).error
    assert gloo.first.now(waits_in).value is None
