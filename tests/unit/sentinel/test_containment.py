"""What an engine core knows of its ranks in one epoch; what belongs to another one changes nothing."""

from holdfast.core.faults.faults import Fault, FaultClass
from holdfast.sentinel.containment import Containment

BOUND_S = 5.0


def a_fault(fault_class: FaultClass = FaultClass.TRANSIENT, message: str = "boom") -> Fault:
    return Fault(fault_class=fault_class, error_type="ValueError", message=message, engine_id=0, rank=0)


def in_epoch(epoch: int) -> Containment:
    ranks = Containment(BOUND_S)
    ranks.begin(epoch)
    return ranks


def test_every_rank_but_those_that_faulted_is_told_to_break_once() -> None:
    ranks = in_epoch(1)
    ranks.rank_faulted(1, a_fault(), epoch=1)
    assert ranks.order_break(1, {0, 1, 2}, now=0.0) == {0, 2}
    assert ranks.order_break(1, {0, 1, 2}, now=0.0) == set()
    assert ranks.broken


def test_a_break_of_an_epoch_that_is_over_tells_nobody() -> None:
    ranks = in_epoch(2)
    assert ranks.order_break(1, {0, 1}, now=0.0) == set()
    assert (ranks.broken, ranks.owes) == (False, False)


def test_an_acknowledgement_of_an_old_epoch_is_still_owed() -> None:
    ranks = in_epoch(2)
    ranks.order_break(2, {0, 1}, now=0.0)
    ranks.acknowledged(0, epoch=1)
    ranks.acknowledged(1, epoch=2)
    assert ranks.overdue(BOUND_S) == {0}


def test_nobody_is_overdue_before_the_bound_and_nobody_twice() -> None:
    ranks = in_epoch(0)
    ranks.order_break(0, {0, 1}, now=10.0)
    assert ranks.overdue(10.0 + BOUND_S - 0.1) == set()
    assert ranks.overdue(10.0 + BOUND_S) == {0, 1}
    assert ranks.overdue(1e9) == set()


def test_a_rank_that_faulted_owes_no_acknowledgement() -> None:
    ranks = in_epoch(0)
    ranks.order_break(0, {0, 1}, now=0.0)
    ranks.rank_faulted(0, a_fault(), epoch=0)
    assert ranks.overdue(BOUND_S) == {1}


def test_the_deepest_fault_of_an_epoch_is_the_one_that_counts() -> None:
    ranks = in_epoch(0)
    assert ranks.rank_faulted(0, a_fault(FaultClass.COMMUNICATOR), epoch=0)
    assert ranks.rank_faulted(1, a_fault(), epoch=0)
    assert not ranks.rank_faulted(0, a_fault(message="later"), epoch=0)
    assert ranks.fault == a_fault()


def test_a_fault_of_another_epoch_is_no_news() -> None:
    ranks = in_epoch(1)
    assert not ranks.rank_faulted(0, a_fault(), epoch=0)
    assert ranks.fault is None


def test_an_epoch_begins_with_a_clean_slate() -> None:
    ranks = in_epoch(0)
    ranks.rank_faulted(0, a_fault(), epoch=0)
    ranks.order_break(0, {0, 1}, now=0.0)
    ranks.begin(1)
    assert (ranks.epoch, ranks.fault, ranks.broken, ranks.owes) == (1, None, False, False)
    assert ranks.overdue(1e9) == set()


def test_what_is_to_happen_in_an_epoch_does_not_happen_in_the_next() -> None:
    ranks, happened = in_epoch(1), []
    for epoch in (0, 1, 2):
        ranks.during(epoch, lambda epoch=epoch: happened.append(epoch))  # type: ignore[misc]
    assert happened == [1]
