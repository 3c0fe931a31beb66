"""What a `WorkerSentinel` relies on of a `WorkerHost`, for every host."""

from __future__ import annotations

import threading
import time

import pytest

from contract.hosts.rig import LONG_S, RANKS
from holdfast.core.faults.faults import Phase


@pytest.mark.parametrize("rank", range(RANKS))
def test_an_armed_fault_goes_off_in_its_rank_and_is_reported_by_it_alone(rig, rank):
    """The report names rank, phase and epoch; a peer only reports the loss of a collective."""
    rig.add("a")
    rig.arm(Phase.FORWARD, rank=rank)
    rig.failing_step()
    rig.await_report_of(rank)
    [armed] = [reported for reported in rig.faults if "injected fault" in reported.fault.message]
    assert (armed.fault.rank, armed.fault.phase, armed.epoch) == (rank, Phase.FORWARD, 0)


def test_a_fault_may_be_armed_to_come_later(rig):
    """Steps before the armed step change nothing."""
    rig.add("a", 8)
    rig.arm(Phase.SAMPLE_START, after_steps=3)
    for _ in range(3):
        rig.step()
    assert rig.faults == []
    assert rig.engine.is_workers_reply(rig.failing_step())


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_whose_collectives_were_broken_takes_no_step(rig, rank):
    """The step fails, and the broken rank reports no fault."""
    rig.add("a", 8)
    rig.step()
    sent = list(rig.answers["a"])
    assert rig.workers[rank].break_collectives(0) == RANKS - 1
    rig.failing_step()
    assert rig.answers["a"] == sent
    assert rank not in {reported.fault.rank for reported in rig.faults}


def test_the_result_of_a_step_during_which_the_collectives_were_broken_is_refused(rig):
    """The step ends without an error, as on an aborted communicator: no token of the step is delivered."""
    rig.add("a", 8)
    rig.step()
    sent = list(rig.answers["a"])
    rig.break_before_the_next_reply()
    error = rig.failing_step()
    assert rig.answers["a"] == sent
    rig.recover(error)
    rig.run()
    assert rig.is_exact


def test_breaking_twice_breaks_nothing_more(rig):
    """The second break finds no connection, and is no error."""
    assert rig.workers[0].break_collectives(0) == RANKS - 1
    assert rig.workers[0].break_collectives(0) == 0


def test_a_rank_that_was_let_in_again_takes_steps(rig):
    """A recovery in a newer epoch ends the fence of a break."""
    rig.add("a", 8)
    rig.step()
    for worker in rig.workers:
        worker.break_collectives(0)
    rig.recover(rig.failing_step())
    rig.run()
    assert rig.is_exact


def test_a_break_of_an_older_epoch_changes_nothing(rig):
    """A rank in a later epoch answers None, and the collectives stay whole."""
    rig.add("a", 8)
    rig.step()
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    assert rig.workers[0].break_collectives(0) is None
    rig.run()
    assert rig.is_exact


def test_a_rank_that_is_stopped_again_stays_out_of_the_epoch_it_was_stopped_in(rig):
    """A break in a recovered epoch fails the next step; a further recovery leads to a newer epoch."""
    rig.add("a", 8)
    rig.step()
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    assert rig.workers[1].break_collectives(1) == RANKS - 1
    rig.recover(rig.failing_step())
    rig.run()
    assert rig.is_exact


def test_a_rank_in_no_collective_says_so(rig):
    """The rank whose reply ended the last step has left every collective."""
    rig.add("a")
    rig.run()
    assert rig.workers[0].collective_under_way(0) is None


def test_a_collective_that_waits_for_a_peer_is_told_until_it_is_broken(waiting_rank):
    """The text is the same for the same call; a break from another thread releases the main thread."""
    seen = []

    def watch():
        deadline = time.monotonic() + LONG_S
        while waiting_rank.host.collective_under_way(0) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        seen.extend(waiting_rank.host.collective_under_way(0) for _ in range(2))
        seen.append(waiting_rank.host.break_collectives(0))

    beside = threading.Thread(target=watch)
    beside.start()
    with pytest.raises(Exception):  # noqa: B017 - each host's own
        waiting_rank.all_reduce()
    beside.join(LONG_S)
    assert seen[0] == seen[1]
    assert isinstance(seen[0], str)
    assert seen[2] > 0
    assert waiting_rank.host.collective_under_way(0) is None
