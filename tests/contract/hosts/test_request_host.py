"""What the quarantine relies on of a `RequestHost`, for every host."""

from __future__ import annotations

import pytest

from contract.hosts.rig import PROMPT
from holdfast.core.faults.faults import Phase


def nothing() -> None: ...


def add_three(rig):
    for name, prompt in (("a", PROMPT), ("b", [7, 8, 9]), ("c", [11, 12])):
        rig.add(name, 8, prompt)


def output(rig):
    """Return how many tokens each open request has got."""
    return {name: standing.output for name, standing in rig.requests.request_progress().items()}


def test_standings_tell_every_open_request_in_the_order_of_arrival(rig):
    """A request that waits for a first step has computed nothing; a finished request has no standing."""
    add_three(rig)
    rig.add("short", 1, [5, 6])
    progress = rig.requests.request_progress()
    assert list(progress) == ["a", "b", "c", "short"]
    assert {(s.good, s.reached, s.output, s.in_flight) for s in progress.values()} == {(0, 0, 0, False)}
    rig.step()
    progress = rig.requests.request_progress()
    assert list(progress) == ["a", "b", "c"]
    assert (progress["a"].good, progress["a"].output) == (len(PROMPT), 1)


def test_standings_after_a_failed_step_tell_good_tokens_from_those_in_flight(rig):
    """Tokens of a step that failed are reached and not good."""
    rig.add("a", 8)
    rig.step()
    rig.arm(Phase.FORWARD, rank=1)
    error = rig.failing_step()
    standing = rig.requests.request_progress()["a"]
    assert (standing.good, standing.reached, standing.output) == (len(PROMPT), len(PROMPT) + 1, 1)
    rig.recover(error)
    assert not rig.requests.request_progress()["a"].in_flight


@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "running"])
def test_only_requests_named_to_run_are_in_a_step(rig, begun):
    """All other requests get no token and keep the computed tokens; without a rule all requests run."""
    add_three(rig)
    if begun:
        rig.step()
    before = output(rig)
    computed = {name: standing.good for name, standing in rig.requests.request_progress().items()}
    rig.requests.restrict(frozenset("b"), frozenset(), nothing)
    rig.step()
    rig.step()
    assert output(rig) == {"a": before["a"], "b": before["b"] + 2, "c": before["c"]}
    assert rig.requests.request_progress()["a"].good == computed["a"]
    rig.requests.restrict(None, frozenset(), None)
    rig.run()
    assert rig.is_exact


@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "running"])
def test_requests_named_to_wait_are_in_no_step(rig, begun):
    """Everybody else runs."""
    add_three(rig)
    if begun:
        rig.step()
    before = output(rig)
    rig.requests.restrict(None, frozenset("ac"), nothing)
    rig.step()
    assert output(rig) == {"a": before["a"], "b": before["b"] + 1, "c": before["c"]}
    rig.requests.restrict(None, frozenset(), None)
    rig.run()
    assert rig.is_exact


def test_without_a_call_before_each_step_no_request_is_kept_out(rig):
    """A rule without `before_step` is no rule, whichever requests are named."""
    add_three(rig)
    rig.requests.restrict(frozenset("b"), frozenset("c"), None)
    rig.step()
    assert output(rig) == {"a": 1, "b": 1, "c": 1}


def test_a_rule_may_change_before_every_step(rig):
    """`before_step` runs before each step is scheduled, and the step follows the new rule."""
    add_three(rig)
    turns = iter("abc")
    calls = []

    def next_alone():
        calls.append(next(turns, None))
        rig.requests.restrict(frozenset(calls[-1] or ()), frozenset(), next_alone)

    rig.requests.restrict(frozenset(), frozenset(), next_alone)
    for expected in ({"a": 1, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 1}):
        rig.step()
        assert output(rig) == expected
    assert calls == ["a", "b", "c"]


def test_a_rule_outlasts_a_recovery(rig):
    """Requests that are kept out stay out when the busy loop goes on after a fault."""
    add_three(rig)
    rig.step()
    rig.requests.restrict(frozenset("b"), frozenset(), nothing)
    rig.arm(Phase.FORWARD, rank=1)
    rig.recover(rig.failing_step())
    rig.step()
    assert output(rig) == {"a": 1, "b": 2, "c": 1}
    rig.requests.restrict(None, frozenset(), None)
    rig.run()
    assert rig.is_exact


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_kv_that_is_not_trusted_is_computed_again(rig, times):
    """After a recovery a request gives up the KV, also as a prefix for the next request. Idempotent."""
    rig.add("a", 8)
    rig.step()
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    assert rig.requests.request_progress()["a"].good == len(PROMPT)
    for _ in range(times):
        rig.requests.recompute("a")
    assert rig.requests.request_progress()["a"].good == 0
    rig.spoil_kv()
    rig.add("b", 8)
    rig.run()
    assert rig.is_exact


def test_kv_that_is_trusted_would_have_shown_that_it_is_spoilt(rig):
    """Spoilt KV that stays trusted changes tokens: the test above can fail."""
    rig.add("a", 8)
    rig.step()
    rig.engine.interrupt()
    rig.recover(rig.failing_step())
    rig.spoil_kv()
    rig.run()
    assert not rig.is_exact


def test_an_unknown_request_is_not_computed_again(rig):
    """A request that ended meanwhile is no error."""
    rig.add("a", 8)
    rig.step()
    rig.requests.recompute("nobody")
    rig.run()
    assert rig.is_exact


def test_a_control_request_is_like_any_other_and_ends_by_itself(rig):
    """Two controls are two requests with different names, and change no token of other requests."""
    rig.add("a", 4)
    rig.requests.add_control()
    rig.requests.add_control()
    assert rig.engine.unfinished_requests() == 3
    assert len(rig.requests.request_progress()) == 3
    rig.run()
    assert rig.is_exact


def test_a_request_that_is_ended_tells_why_and_no_other_is_harmed(rig):
    """The request is unfinished no more at once. Idempotent, and nothing happens for an unknown name."""
    add_three(rig)
    rig.step()
    for _ in range(2):
        rig.requests.end("b", "it is guilty")
    rig.requests.end("nobody", "it is unknown")
    assert list(rig.requests.request_progress()) == ["a", "c"]
    assert rig.engine.unfinished_requests() == 2
    rig.run()
    assert rig.ended == {"b": "it is guilty"}
    assert rig.is_exact
