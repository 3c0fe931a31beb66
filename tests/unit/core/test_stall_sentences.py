"""Deadlines of calls to the second, and what a stall says of itself."""

import pytest

from holdfast.core.faults.faults import Phase
from holdfast.core.stalls.stalls import Observation, Stall, StallDetector
from holdfast.core.stalls.step_deadlines import Deadline, Deadlines, Limits, Remembered, quantile
from holdfast.core.stalls.steps import BatchShape, Ended, Running

DECODE, BIGGER_DECODE, PREFILL = BatchShape(8, 8), BatchShape(16, 16), BatchShape(512, 1)
TICK_S = 0.125
FEW = "0 steps of its shape known, fewer than needed"


def call(shape=DECODE, *, phase=Phase.FORWARD, first=False, began_at=0.0, number=100, lane=0):
    return Running(lane, number, 7, phase, shape, began_at, first)


def learned(*lasted_s, shape=DECODE, limits=None, remembered=None, phase=Phase.FORWARD):
    deadlines = Deadlines(limits or Limits(), remembered)
    for each in lasted_s:
        deadlines.learn(Ended(phase, shape, each))
    return deadlines


def test_a_learned_shape_has_ten_times_its_slowest_call():
    assert learned(0.1, 0.2, 0.3, 0.4, 0.5).of(call()) == Deadline(5.0, "10 times 0.500 s, of 5 like it")


def test_a_fast_shape_has_the_least_of_its_kind():
    fast = (0.01,) * 5
    said = "; of 5 like it the slowest took 0.010 s"
    assert learned(*fast).of(call()) == Deadline(1.0, f"the least for a decode{said}")
    assert learned(*fast, shape=PREFILL).of(call(PREFILL)) == Deadline(10.0, f"the least for a prefill{said}")
    schedule = Phase.SCHEDULE_START
    assert learned(*fast, phase=schedule).of(call(phase=schedule)) == Deadline(
        3.0, f"the least for a turn of an engine core{said}"
    )


def test_a_call_exactly_at_the_floor_has_the_least():
    assert learned(*(0.1,) * 5).of(call()).source.startswith("the least for a decode")


def test_four_calls_are_too_few_to_learn_from_and_five_are_enough():
    source = (
        "4 steps of its shape known, fewer than needed; the slowest of them and of those before the last recovery "
        "took 0.400 s"
    )
    assert learned(0.1, 0.2, 0.3, 0.4).of(call()) == Deadline(20.0, source)
    assert learned(0.1, 0.2, 0.3, 0.4, 0.5).of(call()).seconds == 5.0


def test_the_first_call_of_a_shape_has_the_longest_bound():
    assert learned(*(0.1,) * 5).of(call(first=True)) == Deadline(300.0, FEW)
    assert learned().of(call()) == Deadline(300.0, FEW)


def test_calls_that_are_not_typical_teach_nothing():
    deadlines = learned()
    for _ in range(5):
        deadlines.learn(Ended(Phase.FORWARD, DECODE, 0.1, is_typical=False))
    assert deadlines.of(call()) == Deadline(300.0, FEW)


def test_only_the_last_calls_are_kept():
    deadlines = learned(9.0, *(0.5,) * 64)
    assert deadlines.of(call()) == Deadline(5.0, "10 times 0.500 s, of 64 like it")


def test_after_a_recovery_the_slowest_call_before_it_is_a_hint():
    source = f"{FEW}; the slowest of them and of those before the last recovery took 4.000 s"
    for may_compile, seconds in ((False, 40.0), (True, 120.0)):
        deadlines = learned(*(3.0, 4.0), limits=Limits(may_compile=may_compile))
        deadlines.forget()
        assert deadlines.of(call()) == Deadline(seconds, source)


def test_a_short_hint_still_leaves_time_for_a_slow_start():
    deadlines = learned(0.1)
    deadlines.forget()
    assert deadlines.of(call()).seconds == 20.0


def test_a_larger_call_than_all_known_ones_is_guessed_by_the_square_of_its_size():
    deadlines = learned(4.0)
    deadlines.forget()
    source = f"{FEW}; by smaller ones before the last recovery it may take 16.000 s"
    assert deadlines.of(call(BIGGER_DECODE)) == Deadline(160.0, source)
    assert deadlines.of(call(BatchShape(64, 64))).seconds == 300.0


def test_a_guess_leaves_time_for_a_slow_start_and_for_a_compilation():
    for may_compile, seconds in ((False, 20.0), (True, 120.0)):
        deadlines = learned(0.1, limits=Limits(may_compile=may_compile))
        deadlines.forget()
        assert deadlines.of(call(BIGGER_DECODE)).seconds == seconds


def test_a_hint_is_of_the_same_phase_and_kind_and_of_at_least_the_size():
    remembered = Remembered()
    remembered.keep(Phase.FORWARD, DECODE.bucket, 2.0)
    remembered.keep(Phase.FORWARD, DECODE.bucket, 1.0)
    remembered.keep(Phase.FORWARD, BIGGER_DECODE.bucket, 3.0)
    remembered.keep(Phase.SAMPLE_END, DECODE.bucket, 9.0)
    assert remembered.slowest_s(call()) == 3.0
    assert remembered.slowest_s(call(BIGGER_DECODE)) == 3.0
    assert remembered.slowest_s(call(BatchShape(64, 64))) is None
    assert remembered.slowest_s(call(PREFILL)) is None
    assert remembered.guessed_s(call(PREFILL)) is None
    assert remembered.guessed_s(call(BatchShape(32, 32))) == 12.0


def test_durations_are_remembered_across_processes_by_their_slowest():
    remembered = Remembered()
    for lasted_s in (4.0, 3.0):
        learned(lasted_s, remembered=remembered).forget()
    assert remembered.slowest_s(call()) == 4.0


@pytest.mark.parametrize(
    ("values", "q", "found"),
    [((3.0,), 0.99, 3.0), ((1.0, 3.0, 2.0), 0.99, 3.0), ((1.0, 3.0, 2.0, 4.0), 0.5, 2.0), ((2.0, 1.0), 0.0, 1.0)],
)
def test_a_quantile_is_one_of_the_values(values, q, found):
    assert quantile(values, q) == found


# ---- stalls


def observed(*looks, limits=None, due_s=TICK_S, ranks=1):
    """Let a detector look at ranks that have learned their decode; return the stalls of every look."""
    detector = StallDetector(limits or Limits())
    taught = tuple(Ended(Phase.FORWARD, DECODE, 0.01) for _ in range(5))
    detector.observe(0.0, due_s, {rank: Observation(10 + rank, "S", ended=taught) for rank in range(ranks)})
    now, found = 0.0, []
    for after_s, seen in looks:
        now += after_s
        found.append(detector.observe(now, due_s, seen))
    return found


def test_a_stall_says_where_how_long_and_why_that_is_too_long():
    running = call(began_at=0.0)
    looks = [(TICK_S, {0: Observation(10, "S", (running,))}) for _ in range(8)]
    *before, [stall] = observed(*looks)
    assert before == [[]] * 7
    deadline = Deadline(1.0, "the least for a decode; of 5 like it the slowest took 0.010 s")
    assert (stall.rank, stall.pid, stall.is_certain, stall.call, stall.deadline) == (0, 10, False, running, deadline)
    assert stall.age_s == 1.0
    assert stall.reason == (
        "no progress in forward of step 7 (8 tokens of 8 requests) for 1.0 s, state S; its deadline was 1.0 s: "
        "the least for a decode; of 5 like it the slowest took 0.010 s"
    )


def test_a_stopped_process_says_since_when():
    running = call()
    looks = [(TICK_S, {0: Observation(10, "T", (running,))}) for _ in range(7)]
    *before, stalls = observed(*looks, limits=Limits(stopped_s=0.75))
    assert before == [[]] * 6
    assert stalls == [Stall(0, 10, True, "its process 10 is stopped (state T) for 0.8 s", running)]


def test_a_stopped_process_without_a_step_has_no_call():
    looks = [(TICK_S, {0: Observation(10, "T")}) for _ in range(7)]
    assert observed(*looks, limits=Limits(stopped_s=0.75))[-1][0].call is None


def test_a_process_that_was_stopped_twice_is_counted_from_the_second_time():
    stopped, running = Observation(10, "T"), Observation(10, "S")
    looks = [(TICK_S, {0: seen}) for seen in [stopped] * 6 + [running] + [stopped] * 6]
    assert observed(*looks, limits=Limits(stopped_s=0.75)) == [[]] * 13


@pytest.mark.parametrize("excuse", [{"starved_s": TICK_S}, {"is_peer": True}])
def test_a_rank_with_an_excuse_is_no_stall(excuse):
    looks = [(TICK_S, {0: Observation(10, "S", (call(),), **excuse)}) for _ in range(30)]
    assert observed(*looks) == [[]] * 30


def test_an_excuse_of_one_rank_is_one_for_all():
    looks = [
        (TICK_S, {0: Observation(10, "S", (call(),)), 1: Observation(11, "S", (call(),), starved_s=TICK_S)})
        for _ in range(30)
    ]
    assert observed(*looks, ranks=2) == [[]] * 30


def test_a_rank_at_work_has_the_time_of_a_compilation_and_says_so():
    limits = Limits(may_compile=True)
    looks = [(TICK_S, {0: Observation(10, "S", (call(),), is_computing=True)}) for _ in range(241)]
    found = observed(*looks, limits=limits)
    assert found[:239] == [[]] * 239
    [stall] = found[239]
    assert stall.deadline.seconds == 30.0
    assert stall.deadline.source == "the least for one that is at work, as it was for 30.0 s"


def test_a_look_that_comes_late_excuses_as_much_as_it_was_late():
    look = {0: Observation(10, "S", (call(),))}
    found = observed((0.5, look), (0.5, look), *[(TICK_S, look)] * 7)
    assert [bool(stalls) for stalls in found] == [False] * 7 + [True] * 2


def test_a_look_that_is_hardly_late_excuses_nothing():
    look = {0: Observation(10, "S", (call(),))}
    found = observed(*[(0.1875, look)] * 6)
    assert [bool(stalls) for stalls in found] == [False] * 5 + [True]


def test_a_rank_that_was_at_work_for_half_of_its_call_is_at_work_and_one_for_less_is_not():
    limits = Limits(may_compile=True)
    running = call(began_at=0.25)
    looks = [(TICK_S, {0: Observation(10, "S", (running,), is_computing=n < 4)}) for n in range(10)]
    found = observed((TICK_S, {0: Observation(10, "S")}), (TICK_S, {0: Observation(10, "S")}), *looks, limits=limits)
    assert [bool(stalls) for stalls in found] == [False] * 10 + [True] * 2
    assert found[-1][0].age_s == 1.25


def test_a_rank_at_work_with_a_learned_deadline_as_long_keeps_the_learned_one():
    detector = StallDetector(Limits(may_compile=True))
    taught = tuple(Ended(Phase.FORWARD, DECODE, 3.0) for _ in range(5))
    detector.observe(0.0, TICK_S, {0: Observation(10, "S", ended=taught)})
    running = call(began_at=0.0)
    for tick in range(1, 240):
        detector.observe(tick * TICK_S, TICK_S, {0: Observation(10, "S", (running,), is_computing=True)})
    [stall] = detector.observe(30.0, TICK_S, {0: Observation(10, "S", (running,), is_computing=True)})
    assert stall.deadline == Deadline(30.0, "10 times 3.000 s, of 5 like it")


def test_a_look_that_is_late_by_the_limit_excuses_nothing():
    look = {0: Observation(10, "S", (call(),))}
    found = observed(*[(0.25, look)] * 4, limits=Limits(late_s=TICK_S))
    assert [bool(stalls) for stalls in found] == [False] * 3 + [True]


def test_a_rank_in_a_debugger_is_excused_for_the_time_in_it_and_for_no_more():
    traced = {0: Observation(10, "t", (call(),), starved_s=5.0)}
    look = {0: Observation(10, "S", (call(),))}
    found = observed((TICK_S, traced), *[(TICK_S, look)] * 8)
    assert [bool(stalls) for stalls in found] == [False] * 8 + [True]


def test_a_stopped_process_is_not_counted_for_the_time_in_which_nobody_looked():
    stopped = {0: Observation(10, "T")}
    found = observed((TICK_S, stopped), (2.0, stopped), *[(TICK_S, stopped)] * 5, limits=Limits(stopped_s=0.75))
    assert [bool(stalls) for stalls in found] == [False] * 6 + [True]


def test_a_process_that_was_gone_for_a_look_learns_anew():
    look = {0: Observation(10, "S", (call(),))}
    assert observed((TICK_S, {}), *[(TICK_S, look)] * 20) == [[]] * 21


def learns(lasted_s, slept_s):
    """Return whether a detector learns from a call that lasted so long, of which the machine slept so long."""
    detector = StallDetector(Limits(learned_calls=1))
    running = call(number=1)
    detector.observe(0.0, TICK_S, {0: Observation(10, "S", (running,))})
    now = TICK_S + slept_s
    detector.observe(now, TICK_S, {0: Observation(10, "S", (running,))})
    ended = Ended(Phase.FORWARD, DECODE, lasted_s, lane=0, call=1)
    later = call(number=2, began_at=now)
    found = []
    for tick in range(1, 200):
        seen = Observation(10, "S", (later,), ended=(ended,) if tick == 1 else ())
        found += detector.observe(now + tick * TICK_S, TICK_S, {0: seen})
    return bool(found)


@pytest.mark.parametrize(
    ("lasted_s", "slept_s", "learned_from"),
    [
        (2.0, 0.5, True),
        (2.0, 0.75, True),
        (2.0, 1.0, False),
        (1.0, 0.75, False),
        (0.75, 0.5, True),
    ],
)
def test_a_call_during_which_the_machine_slept_for_half_of_the_time_teaches_nothing(lasted_s, slept_s, learned_from):
    assert learns(lasted_s, slept_s) is learned_from
