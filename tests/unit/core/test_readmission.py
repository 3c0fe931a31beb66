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
