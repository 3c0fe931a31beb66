"""Who is named by a numerical fault is suspected alone; for different requests it is the rank."""

import pytest

from holdfast.core.faults.faults import MAX_REQUEST_IDS, Fault, FaultClass
from holdfast.core.poison.detector import PoisonDetector, RequestProgress
from holdfast.core.poison.named import Spoilt, in_fault, named_by, names_others


def fault(*request_ids, fault_class=FaultClass.NUMERICAL):
    return Fault(fault_class=fault_class, error_type="E", message="no", engine_id=0, request_ids=request_ids)


def test_only_a_numerical_fault_names_requests():
    assert named_by(fault("a", "b")) == ("a", "b")
    assert named_by(fault("a", fault_class=FaultClass.TRANSIENT)) == ()
    assert named_by(None) == ()


def test_one_that_names_as_many_as_it_can_may_have_left_some_out():
    assert named_by(fault(*map(str, range(MAX_REQUEST_IDS)))) == ()


@pytest.mark.parametrize(("named", "failed"), [((), "abc"), ("b", "b"), ("abc", "abc"), ("xb", "b"), ("x", "abc")])
def test_where_some_are_named_the_others_of_the_step_are_not_suspected(named, failed):
    assert in_fault(frozenset("abc"), named) == frozenset(failed)


@pytest.mark.parametrize(
    ("before", "now", "others"),
    [("", "a", False), ("a", "a", False), ("a", "ab", False), ("ab", "a", False), ("a", "b", True), ("ab", "bc", True)],
)
def test_a_fault_that_names_others_than_one_before_is_of_no_request(before, now, others):
    assert names_others(fault(*now), [(0.0, tuple(before))] if before else []) is others


def test_kv_of_a_named_request_is_computed_anew_once_until_it_gets_further():
    spoilt = Spoilt()
    assert spoilt.due(["a", "gone"], {"a": 9}, {"a": 8}) == ("a",)
    assert spoilt.due(["a"], {"a": 9}, {"a": 8}) == ()
    assert spoilt.due(["a"], {"a": 9}, {"a": 0}) == ()
    assert spoilt.due(["a"], {"a": 12}, {"a": 11}) == ("a",)


def test_a_request_that_is_named_again_is_tried_alone_at_once():
    blame = PoisonDetector()
    in_step = {i: RequestProgress(3, 4, 1) for i in "abcdefgh"}
    assert blame.fault(in_step, ["c"]).run is None
    restriction = blame.fault(in_step, ["c"])
    assert (restriction.suspects, restriction.run) == (1, frozenset("c"))


def test_requests_that_are_named_in_turn_are_not_suspected():
    blame = PoisonDetector()
    in_step = {i: RequestProgress(3, 4, 1) for i in "abcd"}
    assert not any(blame.fault(in_step, [name]).watch for name in "abcdabcd")
