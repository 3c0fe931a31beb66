"""Who is to blame: found with few faults, nobody else is ended, and it always comes to an end."""

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.poison.detector import PoisonDetector, RequestProgress, Restriction

CONTROL_TOKENS = 16
Poisons = Callable[[frozenset[str]], bool]


class Bench:
    """A pretend engine core: every open request that may run is in every step, and a step fails if it is poisoned."""

    def __init__(self, lengths: dict[str, int], poisons: Poisons, *, steps_in_flight: int = 1, renews: bool = False):
        self.blame = PoisonDetector()
        self.poisons = poisons
        self.good = dict.fromkeys(lengths, 0)
        self.lengths = lengths
        self.depth = steps_in_flight
        self.renews = renews
        self.restriction = Restriction()
        self.faults: list[frozenset[str]] = []
        self.told: list[Restriction] = []
        self.ended: list[str] = []
        self.turns = 0
        self.batch_of: tuple[object, ...] = ()
        self.may_run: frozenset[str] = frozenset()

    def request_progress(self, batch: frozenset[str] = frozenset()) -> dict[str, RequestProgress]:
        return {i: RequestProgress(g, g + self.depth * (i in batch), g) for i, g in self.good.items()}

    def batch(self) -> frozenset[str]:
        shown = (self.restriction, *self.good)
        if shown != self.batch_of:
            run = self.restriction.run if self.restriction.run is not None else self.good.keys()
            self.batch_of = shown
            self.may_run = frozenset(i for i in self.good if i in run and i not in self.restriction.excluded)
        return self.may_run

    def run(self, turns: int = 5000) -> "Bench":
        while self.good:
            self.turns += 1
            assert self.turns < turns, "it never ends"
            self.turn()
        return self

    def search(self) -> "Bench":
        """Run until somebody was ended and all others run again: what follows is free of faults."""
        while self.good and not (self.ended and self.restriction.run is None):
            self.turns += 1
            assert self.turns < 5000, "it never ends"
            self.turn()
        return self

    def turn(self) -> None:
        if self.restriction.watch and (changed := self.blame.step(self.request_progress())) is not None:
            self.follow(changed)
        batch = self.batch()
        if batch and self.poisons(batch):
            self.faults.append(batch)
            self.follow(self.blame.fault(self.request_progress(batch)))
            if self.renews:
                self.blame.renewed(by_ladder=False)
            return
        good, lengths = self.good, self.lengths
        for request_id in batch:
            good[request_id] += 1
            if good[request_id] == lengths[request_id]:
                del good[request_id]

    def follow(self, restriction: Restriction) -> None:
        self.restriction = restriction
        self.told.append(restriction)
        for request_id in restriction.end:
            self.ended.append(request_id)
            del self.good[request_id]
        if restriction.wants_control:
            name = f"control {len(self.lengths)}"
            self.good[name], self.lengths[name] = 0, CONTROL_TOKENS


def requests(count: int, length: int = 60) -> dict[str, int]:
    return {f"r{index}": length for index in range(count)}


def any_of(*poison: str) -> Poisons:
    return lambda batch: bool(batch & set(poison))


def together(*poison: str) -> Poisons:
    return lambda batch: batch >= set(poison)


def bound(count: int) -> int:
    """The first fault, the one that begins the search, one for each halving, one of the last few, one to confirm.

    Where nobody has passed yet when the first is tried alone, its failure shows nothing.
    """
    return max(5, 2 + math.ceil(math.log2(count / 4)) + 2)


@pytest.mark.parametrize("poison", range(32))
@pytest.mark.parametrize("depth", [1, 2])
def test_one_of_32_is_found_with_at_most_seven_faults_wherever_it_is(poison, depth):
    bench = Bench(requests(32), any_of(f"r{poison}"), steps_in_flight=depth).run()
    assert bench.ended == [f"r{poison}"]
    assert len(bench.faults) <= 7


@pytest.mark.no_cover  # every place in every batch: what is covered is covered by the tests around
@pytest.mark.parametrize("count", [*range(2, 34), 47, 48, 49, 63, 64])
def test_a_search_costs_one_fault_for_each_halving(count):
    for poison in range(count):
        bench = Bench(requests(count), any_of(f"r{poison}")).search()
        assert bench.ended == [f"r{poison}"]
        assert len(bench.faults) <= bound(count)


def test_one_that_has_got_nowhere_among_others_that_have_is_suspected_first():
    bench = Bench(requests(31), lambda batch: "new" in batch)
    for _ in range(10):
        bench.turn()
    bench.good["new"], bench.lengths["new"] = 0, 5
    bench.run()
    assert (bench.ended, len(bench.faults)) == (["new"], 4)


def test_a_single_fault_begins_no_search():
    faults = iter([True])
    bench = Bench(requests(8), lambda _: next(faults, False)).run()
    assert (bench.ended, len(bench.faults), bench.told) == ([], 1, [Restriction()])


def test_faults_between_which_everybody_gets_further_begin_no_search():
    turns = itertools.count()
    bench = Bench(requests(8, 400), lambda _: next(turns) % 7 == 6).run()
    assert len(bench.faults) > 20
    assert bench.ended == []
    assert not any(v.watch for v in bench.told)


def test_two_faults_in_a_row_by_accident_end_no_request_and_delay_none_for_long():
    faults = iter([True, True])
    bench = Bench(requests(8), lambda _: next(faults, False)).run()
    assert bench.ended == []
    assert bench.told[-1].watch is False
    assert bench.turns < 60 * 3


@pytest.mark.parametrize("count", [2, 3, 4, 32])
def test_where_nothing_passes_no_request_is_poison(count):
    bench = Bench(requests(count), lambda _: True)
    for _ in range(100):
        bench.turn()
    assert bench.ended == []
    assert sum(v.search_progressed for v in bench.told) < len(bench.faults) // 4


def test_what_was_found_out_about_processes_that_were_not_to_be_trusted_is_forgotten():
    sick = [True]
    bench = Bench(requests(4), lambda _: sick[0])
    for _ in range(5):
        bench.turn()
    assert bench.restriction.watch
    sick[0] = False
    bench.blame.renewed(by_ladder=True)
    bench.restriction = Restriction()
    assert bench.run().ended == []


@settings(max_examples=200, deadline=None)
@given(count=st.integers(3, 40), depth=st.integers(1, 2), data=st.data())
def test_of_any_poison_requests_each_is_ended_and_no_other(count, depth, data):
    names = [f"r{i}" for i in range(count)]
    poison = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=min(3, count - 1), unique=True))
    bench = Bench(requests(count), any_of(*poison), steps_in_flight=depth).run()
    assert sorted(bench.ended) == sorted(poison)
    assert len(bench.faults) <= len(poison) * (bound(count) + 4)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 40), size=st.integers(2, 3), data=st.data())
def test_of_those_that_fail_only_together_no_request_is_ended(count, size, data):
    names = [f"r{i}" for i in range(count)]
    poison = data.draw(st.permutations(names))[: min(size, count)]
    bench = Bench(requests(count), together(*poison)).run()
    assert bench.ended == []
    assert len(bench.faults) <= 2 * bound(count)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(3, 40), data=st.data())
def test_a_poison_request_beside_a_pair_is_ended_alone(count, data):
    culprit, *pair = data.draw(st.permutations([f"r{i}" for i in range(count)]))[:3]
    both = any_of(culprit), together(*pair)
    bench = Bench(requests(count), lambda batch: any(poisons(batch) for poisons in both)).run()
    assert bench.ended == [culprit]
    assert len(bench.faults) <= 4 * bound(count)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 24), data=st.data())
def test_whatever_fails_it_ends(count, data):
    fails = data.draw(st.lists(st.booleans(), max_size=80))
    outcomes = iter(fails)
    bench = Bench(requests(count), lambda _: next(outcomes, False)).run()
    assert not bench.good, "somebody neither finished nor was ended"
    assert len(bench.faults) <= sum(fails)


# ---- one that nobody can be compared with


@pytest.mark.parametrize("renews", [False, True])
def test_one_that_is_alone_is_compared_with_a_request_of_our_own_and_ended(renews):
    bench = Bench(requests(1), any_of("r0"), renews=renews).run()
    assert (bench.ended, len(bench.faults)) == (["r0"], 5)


def test_where_a_request_of_our_own_fails_too_no_request_is_ended():
    bench = Bench(requests(1), lambda _: True)
    for _ in range(200):
        bench.turn()
    assert bench.ended == []
    assert sum(v.search_progressed for v in bench.told) == 0


def test_a_host_that_has_no_request_of_its_own_lets_it_run_again():
    bench = Bench(requests(1), any_of("r0"))
    while not bench.told or not bench.told[-1].wants_control:
        bench.turn()
    found = [v for _ in range(1000) if (v := bench.blame.step({"r0": RequestProgress(0, 0, 0)})) is not None]
    assert [v.watch for v in found] == [False]


def test_one_that_gets_further_between_its_faults_is_not():
    turns = itertools.count()
    assert Bench(requests(1, 30), lambda _: next(turns) % 5 == 4, renews=True).run().ended == []


def test_a_waiting_request_serves_as_a_control():
    bench = Bench(requests(1), any_of("r0"))
    for _ in range(2):
        bench.turn()
    bench.good["late"], bench.lengths["late"] = 0, 9
    bench.run()
    assert (bench.ended, len(bench.faults)) == (["r0"], 5)


# ---- faults of another cause


@settings(max_examples=500, deadline=None)
@given(
    count=st.integers(1, 40),
    depth=st.integers(1, 2),
    gaps=st.tuples(st.integers(0, 30), st.integers(1, 30)),
    lengths=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_whatever_fails_for_a_while_and_then_for_another_while_ends_no_request(count, depth, gaps, lengths):
    """It takes three: one that begins the search, and two that begin just when the same request runs alone."""
    fails = (b for gap, length in zip(gaps, lengths, strict=True) for b in [False] * gap + [True] * length)
    bench = Bench(requests(count), lambda _: next(fails, False), steps_in_flight=depth).run()
    assert bench.ended == []


def test_a_fault_elsewhere_clears_the_one_that_failed_alone():
    bench = Bench(requests(8), any_of("r7"))
    while not any(v.search_progressed for v in bench.told):
        bench.turn()
    assert bench.faults[-1] == {"r7"}
    poisons, bench.poisons = bench.poisons, lambda _: True
    bench.turn()
    bench.poisons = poisons
    assert "r7" not in bench.faults[-1]
    before = len(bench.faults)
    assert bench.run().ended == ["r7"]
    assert len(bench.faults) - before >= 2


@pytest.mark.parametrize("chance", [0.01, 0.05])
def test_faults_of_another_cause_at_random_end_an_innocent_one_as_seldom_as_said(chance):
    """Twice it has to be hit in the few steps of its trial: for each search the square of the odds of that."""
    dice = random.Random(1)
    runs = [Bench(requests(8, 30), lambda _: dice.random() < chance).run(20000) for _ in range(300)]
    searches = sum(v.reason.startswith("after 2 ") for bench in runs for v in bench.told)
    assert searches > 5
    assert sum(len(bench.ended) for bench in runs) <= searches * (4 * chance) ** 2


# ---- who waits


def test_one_that_fails_beside_another_runs_when_that_has_left():
    bench = Bench(requests(2), together("r0", "r1")).run()
    assert bench.ended == []
    assert any(v.excluded for v in bench.told)
    assert bench.turns < 2 * 60 + 30


def test_one_that_leaves_is_no_longer_looked_for():
    bench = Bench(requests(16), any_of("r5"))
    for _ in range(6):
        bench.turn()
    del bench.good["r5"]
    bench.run()
    assert bench.ended == []


def test_a_search_whose_requests_do_not_run_is_given_up():
    bench = Bench(requests(8), any_of("r5"))
    for _ in range(2):
        bench.turn()
    assert bench.restriction.watch
    found = [v for _ in range(1000) if (v := bench.blame.step(bench.request_progress())) is not None]
    assert [v.watch for v in found] == [False]
    assert "given up" in found[0].reason


def test_a_fault_in_a_step_without_requests_teaches_nothing():
    bench = Bench(requests(4), any_of("r1"))
    for _ in range(2):
        bench.turn()
    restriction = bench.blame.fault(bench.request_progress())
    assert (restriction.run, restriction.search_progressed) == (bench.restriction.run, False)
    assert bench.run().ended == ["r1"]


@pytest.mark.parametrize("poison", [("r1", "r12"), ("r0", "r1"), ("r14", "r15"), ("r2", "r7", "r13")])
def test_several_poison_requests_are_ended_one_after_another(poison):
    bench = Bench(requests(16), any_of(*poison)).run()
    assert sorted(bench.ended) == sorted(poison)


# ---- steps that are in flight while the next trial is to begin


def in_flight(**good: int) -> dict[str, RequestProgress]:
    return {name: RequestProgress(done, done + 1, done) for name, done in good.items()}


def at_rest(**good: int) -> dict[str, RequestProgress]:
    return {name: RequestProgress(done, done, done) for name, done in good.items()}


def draining_detector() -> tuple[PoisonDetector, Restriction]:
    """A detector after `c` has passed alone with a step still in flight; the next trial waits for that step."""
    detector = PoisonDetector()
    for _ in range(2):
        restriction = detector.fault(in_flight(a=1, b=1, c=1))
    assert restriction.run == {"c"}
    for done in range(2, 6):
        restriction = detector.step(at_rest(a=1, b=1) | in_flight(c=done)) or restriction
    return detector, restriction


def test_a_trial_begins_once_steps_of_others_have_ended():
    detector, waiting = draining_detector()
    assert (waiting.run, waiting.suspects) == (frozenset(), 3)
    assert detector.step(at_rest(a=1, b=1) | in_flight(c=6)) is None
    begun = detector.step(at_rest(a=1, b=1, c=7))
    assert begun is not None and begun.run == {"b"}


def test_a_step_of_others_that_never_ends_gives_the_search_up():
    detector, _ = draining_detector()
    told = [r for _ in range(1000) if (r := detector.step(at_rest(a=1, b=1) | in_flight(c=6))) is not None]
    assert not told[0].watch
    assert "search given up" in told[0].reason


def test_a_step_of_others_that_fails_before_a_trial_counts_for_no_suspect():
    detector, waiting = draining_detector()
    assert detector.fault(at_rest(a=1, b=1) | in_flight(c=6)).suspects == waiting.suspects


def test_requests_on_trial_that_leave_before_a_step_end_no_search():
    detector, _ = draining_detector()
    begun = detector.step(at_rest(a=1, b=1, c=7))
    assert begun is not None and begun.run == {"b"}
    following = detector.step(at_rest(a=1, c=7))
    assert following is not None and following.run == {"a"}


def test_a_request_on_trial_that_leaves_before_its_first_step_shows_nothing():
    detector = PoisonDetector()
    for _ in range(2):
        restriction = detector.fault(in_flight(a=0, b=0, c=0))
    assert restriction.run == {"c"}
    told = [r for done in range(2, 8) if (r := detector.step(at_rest(a=0, b=0, c=done))) is not None]
    assert [r.run for r in told] == [{"b"}]
    following = detector.step(at_rest(a=0, c=7))
    assert following is not None and (following.run, following.end) == ({"a"}, ())
