"""Requests whose engine core died go on one by one once they are suspected, and a poison one ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.requests.readmission import CLEARED_TOKENS, Readmission


class Bench:
    """A front end and engine cores that die of poison requests as soon as they get them."""

    def __init__(self, count, *poison, sick=False):
        self.readmission = Readmission()
        self.tokens = {f"r{i}": 0 for i in range(count)}
        self.poison, self.sick = set(poison), sick
        self.there: list[str] = []
        self.ended: list[str] = []
        self.deaths = 0

    def run(self, turns=400):
        for _ in range(turns):
            if not self.tokens:
                return self
            self.turn()
        return self

    def turn(self):
        for request_id in self.tokens:
            if request_id not in self.there and self.readmission.may_go(request_id):
                self.there.append(request_id)
        if self.poison & set(self.there) or (self.sick and self.there):
            self.die()
            return
        for request_id in list(self.there):
            self.tokens[request_id] += 1
            self.readmission.delivered(request_id, self.tokens[request_id])
            if self.tokens[request_id] == 30:
                self.close(request_id)

    def die(self):
        self.deaths += 1
        culprit = self.readmission.lost({i: self.tokens[i] for i in self.there})
        self.there = []
        if culprit is not None:
            self.ended.append(culprit)
            self.poison.discard(culprit)
            self.close(culprit)

    def close(self, request_id):
        self.readmission.closed(request_id)
        del self.tokens[request_id]
        if request_id in self.there:
            self.there.remove(request_id)


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_one_that_kills_every_engine_core_is_ended_after_four(count):
    bench = Bench(count, f"r{count // 2}").run()
    assert (bench.ended, bench.deaths, bench.tokens) == ([f"r{count // 2}"], 4, {})


@given(count=st.integers(3, 20), data=st.data())
def test_of_several_each_is_ended_and_no_other(count, data):
    poison = data.draw(st.sets(st.sampled_from([f"r{i}" for i in range(count)]), min_size=1, max_size=count - 1))
    bench = Bench(count, *poison).run(2000)
    assert (set(bench.ended), bench.tokens) == (poison, {})
    assert bench.deaths <= 2 + 2 * len(poison)


def test_where_every_engine_core_dies_at_once_no_request_is_poison_before_each_was_tried():
    bench = Bench(12, sick=True).run(12)
    assert bench.ended == []


def test_a_request_with_progress_between_two_losses_is_no_suspect():
    readmission = Readmission()
    for tokens in range(20):
        assert readmission.lost({"a": tokens, "b": tokens}) is None
        assert readmission.may_go("a")
        assert readmission.may_go("b")


def test_suspects_go_one_at_a_time():
    readmission = Readmission()
    for _ in range(2):
        readmission.lost({"a": 5, "b": 5})
    assert readmission.may_go("a")
    assert not readmission.may_go("b")
    assert readmission.may_go("somebody else")
    assert not readmission.delivered("a", 5 + CLEARED_TOKENS - 1)
    assert readmission.delivered("a", 5 + CLEARED_TOKENS)
    assert readmission.may_go("b")


def test_one_that_leaves_during_its_trial_makes_room_for_the_next():
    readmission = Readmission()
    for _ in range(2):
        readmission.lost({"a": 0, "b": 0})
    assert readmission.may_go("a")
    assert readmission.is_trying
    assert readmission.closed("a")
    assert readmission.may_go("b")


def suspecting(*suspects):
    """Return the readmission of requests that were with two engine cores at their deaths, and one that was with one."""
    readmission = Readmission()
    readmission.lost({"bystander": 0})
    for _ in range(2):
        assert readmission.lost(dict.fromkeys(suspects, 0)) is None
    return readmission


def test_no_trial_is_under_way_at_first():
    assert not Readmission().is_trying
    assert Readmission().may_go("a")


def test_suspects_take_turns_and_others_go_at_once():
    readmission = suspecting("a", "b")
    assert [readmission.may_go(i) for i in ("bystander", "b", "a", "b", "a")] == [True, False, True, False, True]
    assert readmission.lost({"a": 0}) is None
    assert [readmission.may_go(i) for i in "ab"] == [False, True]
    assert readmission.lost({"b": 0}) is None
    assert [readmission.may_go(i) for i in "ab"] == [True, False]


def test_where_no_suspect_passes_none_is_judged():
    readmission = suspecting("a", "b")
    for tried in "abab":
        assert readmission.may_go(tried)
        assert readmission.lost({tried: 0}) is None


def test_a_suspect_is_judged_after_two_trials_once_another_has_passed():
    readmission = suspecting("a", "b", "c")
    readmission.may_go("a")
    readmission.lost({"a": 0})
    assert readmission.may_go("b")
    assert readmission.delivered("b", CLEARED_TOKENS)
    assert readmission.may_go("c")
    assert readmission.lost({"c": 0}) is None
    assert readmission.may_go("a")
    assert readmission.lost({"a": 0}) == "a"


def test_a_pass_counts_for_the_suspects_of_its_time_only():
    readmission = suspecting("a")
    readmission.may_go("a")
    assert readmission.delivered("a", CLEARED_TOKENS)
    for _ in range(2):
        readmission.lost({"b": 0, "c": 0})
    for tried in "bcbc":
        assert readmission.may_go(tried)
        assert readmission.lost({tried: 0}) is None


def test_the_death_of_an_engine_core_without_the_request_on_trial_is_no_trial():
    readmission = suspecting("a")
    assert readmission.may_go("a")
    assert readmission.lost({"bystander": 5}) is None
    assert readmission.may_go("a")
    assert readmission.lost({"a": 0}) is None
    assert readmission.may_go("a")
    assert readmission.lost({"a": 0}) == "a"


def test_only_the_end_of_the_request_on_trial_lets_the_next_one_go():
    readmission = suspecting("a", "b")
    readmission.may_go("a")
    assert (readmission.closed("b"), readmission.is_trying) == (False, True)
    assert (readmission.closed("a"), readmission.is_trying) == (True, False)
