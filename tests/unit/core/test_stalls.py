"""A step that takes too long is a stall, unless something else explains it. Time is a number here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Observation, Stall, StallDetector
from holdfast.core.stalls.step_deadlines import Deadlines, Limits, quantile
from holdfast.core.stalls.steps import BatchShape, Ended, Running

LIMITS, COMPILING = Limits(), Limits(may_compile=True)
TICK_S = 0.1
DECODE, PREFILL = BatchShape(8, 8), BatchShape(512, 1)


def a_call(began_at: float, shape: BatchShape = DECODE, *, call: int = 100, first: bool = False) -> Running:
    return Running(0, call, call, Phase.FORWARD, shape, began_at, first)


def known(shape: BatchShape = DECODE, lasted_s: float = 0.01) -> tuple[Ended, ...]:
    return tuple(Ended(Phase.FORWARD, shape, lasted_s) for _ in range(LIMITS.learned_calls))


class Bench:
    """Two ranks that have learned how long a decode takes, looked at every tick."""

    def __init__(self, *shapes: BatchShape, ranks: int = 2, lasted_s: float = 0.01, limits: Limits = LIMITS) -> None:
        self.stalls, self.now, self.ranks = StallDetector(limits), 0.0, ranks
        taught = tuple(ended for shape in shapes or (DECODE,) for ended in known(shape, lasted_s))
        self.see({rank: {"ended": taught} for rank in range(ranks)})

    def see(self, ranks: dict[int, dict], after_s: float = TICK_S) -> list[Stall]:
        self.now += after_s
        looks = {rank: Observation(**{"pid": 10 + rank, "state": "S", **seen}) for rank, seen in ranks.items()}
        return self.stalls.observe(self.now, TICK_S, looks)

    def watch(self, seconds: float, seen: dict[int, dict]) -> tuple[list[Stall], float]:
        """The first stalls of some ranks that stay as they are, and when after now."""
        began = self.now
        while self.now - began < seconds:
            if stalls := self.see(seen):
                return stalls, self.now - began
        return [], seconds


def in_step(bench: Bench, shape: BatchShape = DECODE, **seen: object) -> dict:
    return {"running": (a_call(bench.now, shape, first=bool(seen.pop("first", False))),), **seen}


def test_a_decode_that_does_not_end_is_a_stall_soon_after_its_floor() -> None:
    bench = Bench(ranks=1)
    stalls, after_s = bench.watch(5, {0: in_step(bench)})
    assert [(s.rank, s.is_certain) for s in stalls] == [(0, False)]
    assert LIMITS.decode_floor_s <= after_s <= LIMITS.decode_floor_s + 2 * TICK_S
    assert "forward" in stalls[0].reason and "8 tokens of 8 requests" in stalls[0].reason


def test_a_rank_that_is_in_no_step_has_all_the_time_there_is() -> None:
    bench = Bench()
    assert bench.watch(600, {0: {}, 1: {}})[0] == []


def test_of_a_stopped_rank_and_one_that_waits_for_it_the_stopped_one_is_the_stall() -> None:
    bench = Bench()
    stalls, after_s = bench.watch(5, {0: in_step(bench), 1: in_step(bench, state="T")})
    assert [(s.rank, s.is_certain) for s in stalls] == [(1, True)]
    assert after_s <= LIMITS.stopped_s + 2 * TICK_S


def test_a_rank_that_is_stopped_between_steps_is_one_too() -> None:
    bench = Bench()
    assert [s.rank for s in bench.watch(5, {0: in_step(bench), 1: {"state": "T"}})[0]] == [1]


def test_a_process_that_goes_on_before_its_time_was_never_stopped() -> None:
    bench = Bench(ranks=1)
    for _ in range(10):
        assert bench.watch(LIMITS.stopped_s - 2 * TICK_S, {0: {"state": "T"}})[0] == []
        assert bench.see({0: {"state": "S"}}) == []


def test_a_rank_in_a_debugger_has_not_stalled() -> None:
    bench = Bench()
    assert bench.watch(60, {0: in_step(bench), 1: in_step(bench, state="t")})[0] == []


def test_a_dead_process_has_not_stalled() -> None:
    bench = Bench(ranks=1)
    assert bench.watch(60, {0: in_step(bench, state="X")})[0] == []


def test_a_prefill_has_longer_and_so_has_a_decode_that_waits_for_one() -> None:
    bench = Bench(DECODE, PREFILL)
    seen = {0: in_step(bench), 1: in_step(bench, PREFILL)}
    assert bench.watch(LIMITS.prefill_floor_s - 2 * TICK_S, seen)[0] == []
    assert {s.rank for s in bench.watch(1, seen)[0]} == {0, 1}


def test_the_first_of_a_shape_may_compile_for_minutes_and_its_peers_wait() -> None:
    bench = Bench()
    seen = {0: in_step(bench), 1: in_step(bench, first=True)}
    assert bench.watch(LIMITS.unlearned_s - 1, seen)[0] == []


def test_a_shape_that_was_seen_too_rarely_has_no_short_deadline_yet() -> None:
    bench = Bench(PREFILL, ranks=1)
    assert bench.watch(100, {0: in_step(bench)})[0] == []


@pytest.mark.parametrize(("limits", "due_s"), [(LIMITS, LIMITS.relearning_s), (COMPILING, COMPILING.recompiling_s)])
@pytest.mark.parametrize("first", [True, False])
def test_after_a_recovery_what_was_learned_is_a_hint_until_it_is_learned_again(
    limits: Limits, due_s: float, first: bool
) -> None:
    bench = Bench(ranks=1, limits=limits)
    bench.stalls.relearn()
    seen = {0: in_step(bench, first=first)}
    assert bench.watch(due_s - 2 * TICK_S, seen)[0] == []
    [stall] = bench.watch(1, seen)[0]
    assert "of those before the last recovery took 0.010 s" in stall.reason


@pytest.mark.parametrize(("limits", "due_s"), [(LIMITS, LIMITS.relearning_s), (COMPILING, COMPILING.recompiling_s)])
def test_one_call_that_compiled_nothing_is_a_hint_for_the_next(limits: Limits, due_s: float) -> None:
    bench = Bench(ranks=1, limits=limits)
    bench.see({0: {"ended": (Ended(Phase.FORWARD, PREFILL, 0.1),)}})
    seen = {0: in_step(bench, PREFILL)}
    assert bench.watch(due_s - 2 * TICK_S, seen)[0] == []
    assert bench.watch(1, seen)[0] != []


def test_the_first_of_a_shape_is_no_hint() -> None:
    bench = Bench(ranks=1)
    bench.see({0: {"ended": (Ended(Phase.FORWARD, PREFILL, 0.1, is_typical=False),)}})
    assert bench.watch(100, {0: in_step(bench, PREFILL)})[0] == []


def test_after_a_recovery_a_slow_step_has_as_many_times_what_it_took_before() -> None:
    bench = Bench(ranks=1, lasted_s=30.0)
    bench.stalls.relearn()
    assert bench.watch(LIMITS.factor * 30 - 1, {0: in_step(bench)})[0] == []


@pytest.mark.parametrize("seen_dead", [True, False])
def test_another_process_in_a_ranks_place_has_the_hint_of_the_one_before(seen_dead: bool) -> None:
    bench = Bench(ranks=1)
    if seen_dead:
        bench.see({0: {"state": "Z"}})
    seen = {0: in_step(bench, pid=99)}
    assert bench.watch(LIMITS.relearning_s - 2 * TICK_S, seen)[0] == []
    assert bench.watch(1, seen)[0] != []


def hinted_s(shape: BatchShape, *known: BatchShape, lasted_s: float = 0.01) -> float:
    """What a step has after a recovery, where others were known before."""
    bench = Bench(*known, ranks=1, lasted_s=lasted_s)
    bench.stalls.relearn()
    return Deadlines(LIMITS, bench.stalls._remembered).of(a_call(0, shape)).seconds


def test_a_hint_holds_for_smaller_steps_and_for_none_of_another_kind() -> None:
    assert hinted_s(BatchShape(2, 2), BatchShape(16, 16)) == LIMITS.relearning_s
    assert hinted_s(BatchShape(100, 1), BatchShape(512, 2)) == LIMITS.relearning_s
    assert hinted_s(BatchShape(100, 1), BatchShape(512, 512)) == LIMITS.unlearned_s


def test_a_larger_step_than_any_before_has_longer_by_the_square_of_its_size() -> None:
    assert hinted_s(BatchShape(2048, 1), BatchShape(512, 1), lasted_s=1.0) == LIMITS.factor * 16
    assert hinted_s(BatchShape(2048, 1), BatchShape(512, 1)) == LIMITS.relearning_s


def test_what_is_only_guessed_never_has_longer_than_what_is_unknown() -> None:
    assert hinted_s(BatchShape(65536, 1), BatchShape(16, 1), lasted_s=1.0) == LIMITS.unlearned_s


@given(st.floats(0.2, 3600))
def test_a_machine_that_slept_reports_no_stall_on_waking(slept_s: float) -> None:
    bench = Bench()
    seen = {0: in_step(bench), 1: in_step(bench)}
    bench.watch(0.5, seen)
    assert bench.see(seen, after_s=TICK_S + slept_s) == []
    assert {s.rank for s in bench.watch(1, seen)[0]} == {0, 1}, "but what it was watching it still watches"


@pytest.mark.parametrize("woke_before_it_ended", [True, False])
def test_a_call_in_which_the_machine_slept_teaches_nothing(woke_before_it_ended: bool) -> None:
    """A hang right after it is found as soon as ever."""
    bench = Bench(ranks=1)
    bench.see({0: in_step(bench)})
    slept = Ended(Phase.FORWARD, DECODE, 60.0, call=100)
    if woke_before_it_ended:
        bench.see({0: {"running": (a_call(0.0),)}}, after_s=60.0)
        bench.see({0: {"ended": (slept,)}})
    else:
        bench.see({0: {"ended": (slept,)}}, after_s=60.0)
    stalls, after_s = bench.watch(5, {0: in_step(bench)})
    assert stalls and after_s <= LIMITS.decode_floor_s + 2 * TICK_S


def test_a_call_that_merely_took_long_teaches_that() -> None:
    bench = Bench(ranks=1)
    bench.see({0: {"ended": (Ended(Phase.FORWARD, DECODE, 2.0, call=100),)}})
    assert bench.watch(15, {0: in_step(bench)}) == ([], 15)


@given(st.lists(st.floats(0.25, 5), min_size=1, max_size=40))
def test_a_watch_that_always_comes_late_never_reports_a_stall(gaps_s: list[float]) -> None:
    bench = Bench()
    seen = {0: in_step(bench), 1: in_step(bench, state="S")}
    assert all(bench.see(seen, after_s=TICK_S + gap_s) == [] for gap_s in gaps_s if len(gaps_s) * TICK_S < 1)


@pytest.mark.parametrize(
    ("limits", "seen"),
    [(COMPILING, {"state": "R", "is_computing": True}), (COMPILING, {"state": "D"}), (LIMITS, {"state": "D"})],
)
def test_who_is_at_work_has_longer_and_so_has_one_that_waits_for_it(limits: Limits, seen: dict) -> None:
    """A kernel is compiled that no step before needed, or memory is read back from a disk."""
    bench = Bench(limits=limits)
    ranks = {0: in_step(bench), 1: in_step(bench, **seen)}
    assert bench.watch(limits.at_work_floor_s - 2 * TICK_S, ranks)[0] == []
    stalls, _ = bench.watch(1, ranks)
    assert {s.rank for s in stalls} == {0, 1}
    assert "at work" in stalls[0].reason


@pytest.mark.parametrize(
    ("limits", "seen"),
    [(LIMITS, {"state": "R", "is_computing": True}), (COMPILING, {"state": "S"}), (COMPILING, {"state": "R"})],
)
def test_who_computes_where_nothing_is_compiled_and_who_does_not_has_no_longer(limits: Limits, seen: dict) -> None:
    bench = Bench(ranks=1, limits=limits)
    assert bench.watch(limits.decode_floor_s + 2 * TICK_S, {0: in_step(bench, **seen)})[0] != []


def test_a_peer_in_a_prefill_is_waited_for_and_is_declared_hung_by_its_own_engine_core() -> None:
    bench = Bench(DECODE, PREFILL)
    seen = {0: in_step(bench), 1: in_step(bench, PREFILL, is_peer=True)}
    assert bench.watch(LIMITS.prefill_floor_s - 2 * TICK_S, seen)[0] == []
    assert {s.rank for s in bench.watch(1, seen)[0]} == {0}


def test_neither_a_rank_that_waits_for_a_stopped_peer_nor_the_peer_has_stalled() -> None:
    bench = Bench()
    assert bench.watch(60, {0: in_step(bench), 1: in_step(bench, state="T", is_peer=True)})[0] == []


def test_an_engine_core_that_is_waited_for_has_the_time_of_one() -> None:
    bench = Bench()
    turn = tuple(Ended(Phase.SCHEDULE_START, DECODE, 0.001) for _ in range(LIMITS.learned_calls))
    bench.see({0: {}, 1: {"is_peer": True, "ended": turn}})
    running = Running(0, 200, 200, Phase.SCHEDULE_START, DECODE, bench.now)
    seen = {0: in_step(bench), 1: {"is_peer": True, "running": (running,)}}
    assert bench.watch(LIMITS.engine_core_floor_s - 2 * TICK_S, seen)[0] == []
    assert {s.rank for s in bench.watch(1, seen)[0]} == {0}


def test_what_was_computed_in_a_call_before_is_no_excuse_for_this_one() -> None:
    bench = Bench(ranks=1, limits=COMPILING)
    assert bench.watch(20, {0: in_step(bench, state="R", is_computing=True)})[0] == []
    hangs = {"running": (a_call(bench.now, call=101),)}
    assert bench.watch(LIMITS.decode_floor_s + 2 * TICK_S, {0: hangs})[0] != []


def test_a_rank_that_gets_no_processor_has_not_stalled_nor_has_one_that_waits_for_it() -> None:
    bench = Bench()
    seen = {0: in_step(bench), 1: in_step(bench, state="R", starved_s=TICK_S)}
    assert bench.watch(60, seen)[0] == []


def test_a_rank_that_spins_and_gets_its_processor_has_stalled() -> None:
    bench = Bench(ranks=1)
    assert bench.watch(3, {0: in_step(bench, state="R", starved_s=0.001)})[0]


@given(st.floats(0.001, 30))
def test_the_deadline_grows_with_what_steps_take(lasted_s: float) -> None:
    deadlines = Deadlines(LIMITS)
    for ended in known(lasted_s=lasted_s):
        deadlines.learn(ended)
    assert deadlines.of(a_call(0)).seconds >= max(LIMITS.decode_floor_s, LIMITS.factor * lasted_s * 0.999)


def test_a_compilation_teaches_nothing_about_the_steps_after_it() -> None:
    deadlines = Deadlines(LIMITS)
    for ended in (Ended(Phase.FORWARD, DECODE, 60.0, is_typical=False), *known()):
        deadlines.learn(ended)
    assert deadlines.of(a_call(0)).seconds == LIMITS.decode_floor_s


@given(st.lists(st.floats(0, 100), min_size=1, max_size=64).map(tuple))
def test_of_few_values_the_highest_quantile_is_the_largest(values: tuple[float, ...]) -> None:
    assert quantile(values, 0.99) == max(values)
