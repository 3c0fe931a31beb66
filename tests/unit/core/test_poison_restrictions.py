"""What the poison detector allows after each fault, and the sentences in which it says why."""

import msgspec
import pytest

from holdfast.core.faults.faults import MAX_REQUEST_IDS, FaultClass
from holdfast.core.poison.detector import (
    IDLE_TURNS,
    PASSING_TURNS,
    PoisonDetector,
    RequestProgress,
    Restriction,
)
from holdfast.core.poison.memory import poison_request_error
from holdfast.core.poison.named import Spoilt, in_fault, named_by, names_others
from support.situations import fault

FOUND = "the request was in 5 failed batches, the last alone; other requests passed in between; "
APART = "a request passes alone and fails beside others; it waits until those have left; "
AFTER_3 = "after 3 failed batches in a row"
ON_TRIAL = "run on trial"
GIVEN_UP = "requests on trial make no progress; search given up, all requests run"


class Engine:
    """A pretend engine core: every request that may run gets a token in each step, unless the step fails."""

    def __init__(self, requests, poisons):
        self.detector = PoisonDetector()
        self.poisons = poisons
        self.good = dict.fromkeys(requests, 0)
        self.now = Restriction()
        self.told = []
        self.turns_taken = 0

    def progress(self, batch=()):
        return {i: RequestProgress(g, g + (i in batch), g) for i, g in self.good.items()}

    def follow(self, restriction):
        self.now = restriction
        for request_id in restriction.end:
            del self.good[request_id]
        if restriction.wants_control:
            self.good[f"{len(self.good)}"] = 0
        self.told.append(f"{self.turns_taken}: {line(restriction)}")

    def turn(self):
        if self.now.watch and (changed := self.detector.step(self.progress())) is not None:
            self.follow(changed)
        allowed = self.good.keys() if self.now.run is None else self.now.run
        batch = frozenset(i for i in self.good if i in allowed and i not in self.now.excluded)
        if batch and self.poisons(batch):
            self.follow(self.detector.fault(self.progress(batch)))
            return
        for request_id in batch:
            self.good[request_id] += 1

    def turns(self, count):
        for _ in range(count):
            self.turns_taken += 1
            self.turn()
        return self.told


def line(restriction):
    """Return a restriction on one line: who runs, how many are suspected, marks, and the reason."""
    runs = "all" if restriction.run is None else "".join(sorted(restriction.run)) or "none"
    marks = [
        "without " + "".join(sorted(restriction.excluded)) if restriction.excluded else "",
        "ends " + "".join(restriction.end) if restriction.end else "",
        "progressed" if restriction.search_progressed else "",
        "control" if restriction.wants_control else "",
    ]
    return f"{' '.join(filter(None, [runs, str(restriction.suspects), *marks]))}: {restriction.reason}"


def any_of(*poison):
    return lambda batch: bool(batch & set(poison))


def together(*poison):
    return lambda batch: batch >= set(poison)


def test_one_poison_request_among_eight_is_ended_and_every_other_one_runs_again():
    assert Engine("abcdefgh", any_of("d")).turns(60) == [
        "1: all 0: ",
        "2: abcd 8: after 2 failed batches in a row 4 of 8 suspects run on trial (4 requests in all)",
        "3: efgh 8 progressed: after 3 failed batches in a row others run on trial (4 requests in all)",
        "7: d 4: after 3 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "7: efgh 4 progressed: after 4 failed batches in a row others run on trial (4 requests in all)",
        "11: d 4: after 4 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "11: efgh 3 progressed: after 5 failed batches in a row others run on trial (4 requests in all)",
        f"15: abcefgh 3 ends d: {FOUND}after 5 failed batches in a row 3 of 3 suspects {ON_TRIAL} (7 requests in all)",
        "18: all 0: no request is suspected any more",
    ]


def test_a_single_poison_request_is_compared_with_a_control():
    assert Engine("a", any_of("a")).turns(40) == [
        "1: all 0: ",
        "2: a 1: after 2 failed batches in a row 1 of 1 suspects run on trial (1 requests in all)",
        "3: none 0 control: after 3 failed batches in a row one suspect is left; comparing with a control request",
        "4: 1 1: after 3 failed batches in a row 1 of 1 suspects run on trial (1 requests in all)",
        "7: a 1: after 3 failed batches in a row 1 of 1 suspects run on trial (1 requests in all)",
        "7: 1 1 progressed: after 4 failed batches in a row others run on trial (1 requests in all)",
        "11: a 1: after 4 failed batches in a row 1 of 1 suspects run on trial (1 requests in all)",
        "11: 1 1 progressed: after 5 failed batches in a row others run on trial (1 requests in all)",
        f"15: 1 1 ends a: {FOUND}after 5 failed batches in a row 1 of 1 suspects run on trial (1 requests in all)",
        "18: all 0: no request is suspected any more",
    ]


def test_one_of_a_pair_that_fails_only_together_waits():
    assert Engine("abcd", together("b", "c")).turns(60) == [
        "1: all 0: ",
        "2: d 4: after 2 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "5: c 4: after 2 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "8: b 4: after 2 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "11: a 4: after 2 failed batches in a row 1 of 4 suspects run on trial (1 requests in all)",
        "14: ab 3: after 2 failed batches in a row 1 of 3 suspects run on trial (2 requests in all)",
        "17: abc 2: after 2 failed batches in a row 1 of 2 suspects run on trial (3 requests in all)",
        f"17: abd 1 without c progressed: {APART}{AFTER_3} 1 of 1 suspects {ON_TRIAL} (3 requests in all)",
        "20: all 0 without c: no request is suspected any more",
    ]


def test_no_request_is_ended_where_every_batch_fails():
    assert Engine("abc", lambda batch: True).turns(5) == [
        "1: all 0: ",
        "2: c 3: after 2 failed batches in a row 1 of 3 suspects run on trial (1 requests in all)",
        "3: b 3: after 3 failed batches in a row 1 of 3 suspects run on trial (1 requests in all)",
        "4: a 3: after 4 failed batches in a row 1 of 3 suspects run on trial (1 requests in all)",
        "5: all 0: no request passes that could be compared with the suspects",
    ]


def at(**standing):
    """Return progress by request: good tokens, or good tokens and tokens reached."""
    pairs = {i: s if isinstance(s, tuple) else (s, s) for i, s in standing.items()}
    return {i: RequestProgress(good, reached, good) for i, (good, reached) in pairs.items()}


def searching(**failed):
    """Return a detector that searches after two failures of a batch."""
    detector = PoisonDetector()
    detector.fault(at(**failed))
    return detector, detector.fault(at(**failed))


def test_a_failed_step_without_requests_says_so_only_during_a_search():
    assert PoisonDetector().fault(at(a=1)) == Restriction()
    detector, _ = searching(a=(1, 2))
    assert detector.fault(at(a=2)) == Restriction("the failed step had no requests", frozenset("a"), suspects=1)


def test_a_request_that_made_progress_between_two_failures_is_not_suspected():
    detector = PoisonDetector()
    assert detector.fault(at(a=(1, 2), b=(1, 2))) == Restriction()
    restriction = detector.fault(at(a=(3, 4), b=(2, 3)))
    assert (restriction.run, restriction.suspects) == (frozenset("a"), 2)
    assert restriction.reason.startswith("after 2 failed batches in a row 1 of 2 suspects run on trial")


def test_the_request_with_the_least_output_is_tried_first():
    detector = PoisonDetector()
    standing = {i: RequestProgress(5, 6, output) for i, output in {"a": 3, "b": 1, "c": 2}.items()}
    detector.fault(standing)
    assert detector.fault(standing).run == frozenset("b")


def test_of_requests_with_equal_output_the_latest_is_tried_first():
    assert searching(a=(1, 2), b=(1, 2), c=(1, 2))[1].run == frozenset("c")


def test_a_trial_waits_until_steps_of_other_requests_have_ended():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    assert detector.step(at(a=(1, 2), b=2)) is None
    told = [detector.step(at(a=2, b=2 + n)) for n in range(1, PASSING_TURNS + 1)]
    assert told[:-1] == [None, None]
    assert told[-1].run == frozenset("a")


def test_requests_in_flight_hold_up_the_next_trial_without_a_second_reason():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    for n in range(1, PASSING_TURNS):
        detector.step(at(a=2, b=2 + n))
    waiting = detector.step(at(a=2, b=(5, 6)))
    assert (waiting.run, "1 of 2 suspects" in waiting.reason) == (frozenset(), True)
    started = detector.step(at(a=2, b=6))
    assert (started.run, started.reason) == (frozenset("a"), "")


def test_a_trial_without_progress_is_given_up_after_many_turns():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    told = [detector.step(at(a=2, b=2)) for _ in range(IDLE_TURNS)]
    assert told[:-1] == [None] * (IDLE_TURNS - 1)
    assert told[-1] == Restriction(GIVEN_UP)


def test_a_trial_with_progress_now_and_then_is_not_given_up():
    detector, _ = searching(a=(1, 9), b=(1, 9))
    told = [detector.step(at(a=9, b=2 + n // IDLE_TURNS)) for n in range(3 * IDLE_TURNS)]
    assert told == [None] * (3 * IDLE_TURNS)


def test_waiting_for_steps_in_flight_is_given_up_too():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    for n in range(1, PASSING_TURNS):
        detector.step(at(a=2, b=2 + n))
    detector.step(at(a=2, b=(5, 6)))
    told = [detector.step(at(a=2, b=(5, 6))) for _ in range(IDLE_TURNS + 1)]
    assert told == [None] * IDLE_TURNS + [Restriction(GIVEN_UP)]


def test_waiting_for_a_control_is_given_up_too():
    detector, _ = searching(a=(1, 2))
    asked = detector.fault(at(a=(2, 3)))
    assert (asked.wants_control, asked.run) == (True, frozenset())
    told = [detector.step(at(a=2)) for _ in range(IDLE_TURNS)]
    assert told == [None] * (IDLE_TURNS - 1) + [Restriction(GIVEN_UP)]


def test_a_request_that_came_meanwhile_is_the_control():
    detector, _ = searching(a=(1, 2))
    detector.fault(at(a=(2, 3)))
    assert detector.step(at(a=3, new=0)).run == {"new"}


def test_two_failures_without_a_request_on_trial_give_up_what_was_found():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    stray = detector.fault(at(a=(2, 3), b=2))
    assert (stray.run, stray.search_progressed) == (frozenset("b"), False)
    assert detector.fault(at(a=(2, 3), b=2)) == Restriction()


def test_a_replacement_by_the_ladder_drops_what_was_found_and_one_for_a_fault_does_not():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    detector.renewed(by_ladder=False)
    assert detector.fault(at(b=(2, 3), a=2)).suspects == 2
    detector.renewed(by_ladder=True)
    assert detector.fault(at(b=(2, 3), a=(2, 3))) == Restriction()


def test_a_request_that_is_kept_apart_runs_again_when_the_others_have_left():
    engine = Engine("abcd", together("b", "c"))
    engine.turns(60)
    for request_id in "ab":
        del engine.good[request_id]
    assert engine.turns(1)[-1] == (
        "61: all 0: a request that was kept apart runs again; the requests it fails beside have left"
    )


def test_requests_that_were_well_in_the_failed_step_are_not_suspected():
    detector = PoisonDetector()
    detector.fault(at(a=(1, 2), b=(1, 2)), named=["a"])
    restriction = detector.fault(at(a=(1, 2), b=(1, 2)), named=["a"])
    assert (restriction.run, restriction.suspects) == (frozenset("a"), 1)


def test_a_numerical_fault_names_its_requests_unless_there_are_too_many():
    numerical = fault(FaultClass.NUMERICAL)
    few = tuple(f"r{n}" for n in range(MAX_REQUEST_IDS - 1))
    assert named_by(msgspec.structs.replace(numerical, request_ids=few)) == few
    assert named_by(msgspec.structs.replace(numerical, request_ids=(*few, "x"))) == ()
    assert named_by(msgspec.structs.replace(fault(), request_ids=few)) == ()
    assert named_by(None) == ()


def test_a_fault_that_names_requests_is_about_those_of_the_batch():
    assert in_fault(frozenset("abc"), ["b", "z"]) == {"b"}
    assert in_fault(frozenset("abc"), ["z"]) == frozenset("abc")


@pytest.mark.parametrize(
    ("now", "before", "others"),
    [("a", ["b"], True), ("a", ["ab"], False), ("ab", ["b"], False), ("", ["b"], False), ("a", [], False)],
)
def test_two_faults_name_others_when_each_names_a_request_that_only_it_names(now, before, others):
    numerical = msgspec.structs.replace(fault(FaultClass.NUMERICAL), request_ids=tuple(now))
    assert names_others(numerical, [(1.0, tuple(names)) for names in before]) is others


def test_damaged_kv_is_computed_again_once_for_the_same_kv():
    spoilt = Spoilt()
    assert spoilt.due(["a", "gone"], {"a": 5}, {"a": 0}) == ("a",)
    assert spoilt.due(["a"], {"a": 6}, {"a": 5}) == ()
    assert spoilt.due(["a"], {"a": 7}, {"a": 6}) == ("a",)
    assert spoilt.due([], {}, {}) == ()
    assert spoilt.due(["a"], {"a": 1}, {"a": 0}) == ("a",)


def test_the_client_of_a_poison_request_is_told_the_incident():
    assert poison_request_error("i-1") == "this request makes the server fail and was ended (incident i-1)"


def test_the_last_suspect_that_is_kept_apart_ends_the_search_at_once():
    assert Engine("abcd", together("c", "d")).turns(60)[-1].endswith(f": {APART}no request is suspected any more")


def test_a_request_has_to_get_past_the_tokens_that_were_in_flight():
    detector, _ = searching(a=(1, 9), b=(1, 9))
    assert [detector.step(at(a=9, b=good)) for good in (3, 5, 7, 9)] == [None] * 4
    assert detector.step(at(a=9, b=10)).run == frozenset("a")


def test_a_request_has_to_get_past_where_it_stood_at_the_first_failure():
    detector = PoisonDetector()
    detector.fault(at(a=(1, 9), b=(1, 9)))
    detector.fault(at(a=(1, 2), b=(1, 2)))
    assert [detector.step(at(a=2, b=good)) for good in (3, 5, 7, 9)] == [None] * 4
    assert detector.step(at(a=2, b=10)).run == frozenset("a")


def test_requests_that_were_well_in_the_failed_step_are_what_the_suspect_is_compared_with():
    detector = PoisonDetector()
    for _ in range(2):
        detector.fault(at(a=(1, 2), b=(1, 2)), named=["a"])
    restriction = detector.fault(at(a=(2, 3), b=2))
    assert (restriction.run, restriction.reason) == (
        frozenset("b"),
        "after 3 failed batches in a row others run on trial (1 requests in all)",
    )


def test_requests_that_were_well_in_a_failed_trial_are_suspected_no_more():
    detector, _ = searching(**dict.fromkeys("abcdefgh", (1, 2)))
    restriction = detector.fault(at(**dict.fromkeys("abcd", (2, 3)), **dict.fromkeys("efgh", 2)), named=["b"])
    assert (restriction.run, restriction.suspects) == (frozenset("acdefgh"), 5)


def test_two_failures_while_a_control_is_awaited_begin_anew():
    detector, _ = searching(a=(1, 2))
    assert detector.fault(at(a=(2, 3))).wants_control
    first = detector.fault(at(a=(2, 3)))
    assert (first.run, first.search_progressed) == (frozenset("a"), False)
    assert detector.fault(at(a=(3, 4))).wants_control
    assert detector.fault(at(a=(4, 5))) == Restriction()
    assert detector.fault(at(a=(5, 6))).reason.startswith("after 2 failed batches in a row 1 of 1 suspects")


def test_a_failed_step_without_requests_leaves_a_trial_waiting_that_waits():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    for n in range(1, PASSING_TURNS):
        detector.step(at(a=2, b=2 + n))
    assert detector.step(at(a=2, b=(5, 6))).run == frozenset()
    assert detector.fault(at(a=2, b=6)).run == frozenset()


def test_one_stray_failure_of_an_earlier_search_does_not_count_in_the_next():
    detector, _ = searching(a=(1, 2), b=(1, 2))
    assert detector.fault(at(a=(2, 3), b=2)).run == frozenset("b")
    for _ in range(IDLE_TURNS):
        detector.step(at(a=2, b=2))
    for _ in range(2):
        detector.fault(at(a=(5, 6), b=(5, 6)))
    assert detector.fault(at(a=(6, 7), b=6)).run == frozenset("b")


# ---- beside a request that is kept apart


def kept_apart():
    """Return an engine core in which request c waits until a and b have left."""
    engine = Engine("abcd", together("b", "c"))
    assert engine.turns(60)[-1].startswith("20: all 0 without c")
    return engine


def test_a_search_beside_a_request_that_is_kept_apart_keeps_it_apart():
    engine = kept_apart()
    engine.poisons = any_of("d")
    assert all(" without c" in told for told in engine.turns(30)[-8:])


def test_a_search_that_is_given_up_keeps_a_request_apart():
    engine = kept_apart()
    engine.poisons = any_of("d")
    engine.turns(2)
    told = [engine.detector.step(engine.progress()) for _ in range(IDLE_TURNS + 1)]
    assert [restriction for restriction in told if restriction] == [Restriction(GIVEN_UP, excluded=frozenset("c"))]


def test_a_failed_step_without_requests_keeps_a_request_apart():
    assert kept_apart().detector.fault(at(a=70, b=70, c=10, d=70)) == Restriction(excluded=frozenset("c"))


def test_a_request_is_not_kept_apart_from_requests_that_have_left():
    assert kept_apart().detector.fault(at(c=(10, 11), d=(70, 71))).excluded == frozenset()


def test_a_control_is_asked_for_beside_a_request_that_waits_for_the_suspect_to_leave():
    engine = Engine("bc", together("b", "c"))
    assert engine.turns(40)[-1].startswith("8: all 0 without c")
    engine.poisons = any_of("b")
    asked = [engine.detector.fault(engine.progress("b")) for _ in range(3)][-1]
    assert (asked.wants_control, asked.excluded) == (True, frozenset("c"))
    told = [engine.detector.step(engine.progress()) for _ in range(IDLE_TURNS)]
    assert told == [None] * (IDLE_TURNS - 1) + [Restriction(GIVEN_UP, excluded=frozenset("c"))]


def test_a_newcomer_has_passed_with_its_first_token():
    engine = Engine("a", any_of("a"))
    engine.turns(2)
    engine.good |= {"m": 0, "n": 0}
    engine.turns(13)
    assert engine.now.run == {"m", "n"}
    m, n = engine.good["m"], engine.good["n"]
    assert m <= 1
    told = [engine.detector.step(at(m=good, n=n + turn)) for turn, good in enumerate((0, 0, 1), 1)]
    assert told[:2] == [None, None]
    assert told[2] == Restriction("no request is suspected any more")


def test_a_trial_that_never_begins_is_given_up_and_keeps_a_request_apart():
    detector = kept_apart().detector
    for _ in range(2):
        detector.fault(at(a=(70, 71), b=(70, 71), c=10, d=(70, 71)))
    for n in range(1, PASSING_TURNS):
        detector.step(at(a=71, b=71, c=10, d=71 + n))
    waiting = at(a=(71, 72), b=(71, 72), c=10, d=80)
    assert detector.step(waiting).run == frozenset()
    told = [detector.step(waiting) for _ in range(IDLE_TURNS + 1)]
    assert [restriction for restriction in told if restriction] == [Restriction(GIVEN_UP, excluded=frozenset("c"))]
