"""Searches for a poison request, trial by trial: what runs, and what is concluded.

A line tells the kind of a trial, the requests on trial, the requests that run beside them, and how the trial ended.
"""

from holdfast.core.poison.bisection import Bisection, Kind, NeedsControl, Over, Trial


def search(suspects, others=(), *, poison=lambda batch: False, bystanders=(), turns=40, controls=False):
    """Run a search to its end; return its trials and findings as lines."""
    bisection = Bisection(list(suspects), list(others))
    return follow(bisection, poison, bystanders, turns, controls)


def follow(bisection, poison, bystanders=(), turns=40, controls=False):
    told = []
    controls_used = 0
    for _ in range(turns):
        step = bisection.next(bystanders)
        if isinstance(step, Trial):
            fails = poison(step.run)
            beside = "".join(sorted(step.run - set(step.probe)))
            told.append(f"{step.kind.name} {''.join(step.probe)}|{beside} {ended(bisection, step, fails)}")
            continue
        name = type(step).__name__
        about = [str(getattr(step, f)) for f in ("request_id", "failed_batches", "unclear") if hasattr(step, f)]
        told.append(" ".join([name, *filter(None, about), *sorted(getattr(step, "others", ()))]))
        if name == "Over" or (name == "NeedsControl" and not controls):
            return told
        if name == "NeedsControl":
            controls_used += 1
            bystanders = (*bystanders, f"{controls_used}")
    return told


def ended(bisection, trial, fails):
    """Tell a search how a trial ended; return that with what the failure left."""
    if not fails:
        bisection.passes()
        return "passes"
    left = {True: "fewer suspects", False: "as many suspects", None: "nothing known"}
    return f"fails: {left[bisection.fails(trial.run)]}"


def any_of(*poison):
    return lambda batch: bool(batch & set(poison))


def together(*poison):
    return lambda batch: batch >= set(poison)


def in_turn(*outcomes):
    """Return batches that fail or not in this order, and pass after that."""
    left = iter(outcomes)
    return lambda batch: next(left, False)


def test_the_trials_of_one_poison_request_in_the_less_suspected_half():
    assert search("abcdefgh", poison=any_of("d")) == [
        "HALF abcd| fails: fewer suspects",
        "CONTROL efgh| passes",
        "ALONE d| fails: fewer suspects",
        "VOUCH efgh| passes",
        "ALONE d| fails: fewer suspects",
        "VOUCH efgh| passes",
        "PoisonFound d 5",
        "RELEASE abc|efgh passes",
        "Over",
    ]


def test_the_trials_of_one_poison_request_among_the_most_suspected_and_three_that_are_not_suspected():
    assert search("abcdefgh", "xyz", poison=any_of("h")) == [
        "HALF abcd| passes",
        "ALONE h| fails: fewer suspects",
        "VOUCH abcd| passes",
        "ALONE h| fails: fewer suspects",
        "VOUCH abcd| passes",
        "PoisonFound h 4",
        "RELEASE xyzefg|abcd passes",
        "Over",
    ]


def test_the_trials_of_two_poison_requests_one_in_each_half():
    assert search("abcdefgh", poison=any_of("a", "g")) == [
        "HALF abcd| fails: fewer suspects",
        "CONTROL efgh| fails: as many suspects",
        "ALONE d| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH b| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH b| passes",
        "PoisonFound a 5",
        "RELEASE efghbcd| fails: fewer suspects",
        "HALF efg| fails: as many suspects",
        "VOUCH b| passes",
        "ALONE g| fails: fewer suspects",
        "VOUCH b| passes",
        "ALONE g| fails: fewer suspects",
        "VOUCH b| passes",
        "PoisonFound g 7",
        "RELEASE hbcdef| passes",
        "Over",
    ]


def test_the_trials_of_one_poison_request_in_the_second_of_four_quarters():
    assert search("abcdefghijklmnop", poison=any_of("k")) == [
        "HALF abcdefgh| passes",
        "HALF ijkl|abcdefgh fails: fewer suspects",
        "VOUCH abcdefgh| passes",
        "ALONE l| passes",
        "ALONE k| fails: fewer suspects",
        "VOUCH abcdefgh| passes",
        "ALONE k| fails: fewer suspects",
        "VOUCH abcdefgh| passes",
        "PoisonFound k 5",
        "RELEASE mnopijl|abcdefgh passes",
        "Over",
    ]


def test_the_trials_of_an_odd_number_of_suspects():
    assert search("abcdefghi", poison=any_of("a")) == [
        "HALF abcd| fails: fewer suspects",
        "CONTROL efghi| passes",
        "ALONE d| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH efghi| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH efghi| passes",
        "PoisonFound a 5",
        "RELEASE bcd|efghi passes",
        "Over",
    ]


def test_the_trials_of_a_poison_request_that_was_not_suspected():
    assert search("abcd", "xyz", poison=any_of("y")) == [
        "RELEASE xyz| fails: fewer suspects",
        "ALONE z| passes",
        "ALONE y| fails: fewer suspects",
        "VOUCH z| passes",
        "ALONE y| fails: fewer suspects",
        "VOUCH z| passes",
        "PoisonFound y 4",
        "RELEASE abcdxz| passes",
        "Over",
    ]


def test_the_trials_of_two_requests_that_fail_only_together():
    assert search("abcd", poison=together("b", "c")) == [
        "ALONE d| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| passes",
        "JOIN b|a passes",
        "JOIN c|ab fails: fewer suspects",
        "KeepApart c a b",
        "JOIN d|ab passes",
        "Over",
    ]


def test_the_trials_of_two_requests_of_both_halves_that_fail_only_together():
    assert search("abcdef", poison=together("b", "f")) == [
        "HALF abc| passes",
        "ALONE f| passes",
        "ALONE e| passes",
        "ALONE d| passes",
        "JOIN d|abc passes",
        "JOIN e|abcd passes",
        "JOIN f|abcde fails: fewer suspects",
        "KeepApart f a b c d e",
        "Over",
    ]


def test_the_trials_of_a_single_request_without_a_control():
    assert search("a", poison=any_of("a")) == [
        "ALONE a| fails: as many suspects",
        "NeedsControl",
    ]


def test_the_trials_of_a_single_request_with_a_control():
    assert search("a", poison=any_of("a"), controls=True) == [
        "ALONE a| fails: as many suspects",
        "NeedsControl",
        "ALONE 1| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH 1| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH 1| passes",
        "PoisonFound a 5",
        "RELEASE 1| passes",
        "Over",
    ]


def test_the_trials_of_a_single_request_beside_bystanders():
    assert search("a", poison=any_of("a"), bystanders=("m", "n")) == [
        "ALONE a| fails: as many suspects",
        "ALONE n| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH n| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH n| passes",
        "PoisonFound a 5",
        "RELEASE mn| passes",
        "Over",
    ]


def test_the_trials_of_a_few_requests_of_which_none_passes():
    assert search("abc", poison=lambda batch: True) == [
        "ALONE c| fails: as many suspects",
        "ALONE b| fails: as many suspects",
        "ALONE a| fails: as many suspects",
        "Over no request passes that could be compared with the suspects",
    ]


def test_the_trials_of_many_requests_of_which_none_passes():
    assert search("abcdefgh", "xy", poison=lambda batch: True) == [
        "HALF abcd| fails: fewer suspects",
        "CONTROL efgh| fails: as many suspects",
        "ALONE d| fails: as many suspects",
        "ALONE c| fails: as many suspects",
        "ALONE b| fails: as many suspects",
        "ALONE a| fails: as many suspects",
        "HALF xye| fails: as many suspects",
        "ALONE e| fails: as many suspects",
        "ALONE y| fails: as many suspects",
        "ALONE x| fails: as many suspects",
        "ALONE h| fails: as many suspects",
        "ALONE g| fails: as many suspects",
        "ALONE f| fails: as many suspects",
        "Over no request passes that could be compared with the suspects",
    ]


def test_the_trials_of_a_control_that_fails_as_well():
    assert search("a", poison=lambda batch: True, controls=True) == [
        "ALONE a| fails: as many suspects",
        "NeedsControl",
        "ALONE 1| fails: as many suspects",
        "Over no request passes that could be compared with the suspects",
    ]


def test_the_trials_of_many_requests_of_which_all_pass():
    assert search("abcdefgh", "xy") == [
        "HALF abcd| passes",
        "ALONE h| passes",
        "ALONE g| passes",
        "ALONE f| passes",
        "ALONE e| passes",
        "JOIN e|abcd passes",
        "JOIN f|abcde passes",
        "JOIN g|abcdef passes",
        "JOIN h|abcdefg passes",
        "RELEASE xy|abcdefgh passes",
        "Over",
    ]


def test_the_trials_of_a_few_requests_of_which_all_pass():
    assert search("abc", "xy") == [
        "RELEASE xy| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| passes",
        "JOIN a|xy passes",
        "JOIN b|axy passes",
        "JOIN c|abxy passes",
        "Over",
    ]


def test_the_trials_of_a_request_that_fails_once_and_then_passes():
    assert search("abcd", "xy", poison=in_turn(False, True)) == [
        "RELEASE xy| passes",
        "ALONE d| fails: fewer suspects",
        "VOUCH xy| passes",
        "ALONE d| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| passes",
        "JOIN a|xy passes",
        "JOIN b|axy passes",
        "JOIN c|abxy passes",
        "JOIN d|abcxy passes",
        "Over",
    ]


def test_the_trials_of_a_single_request_that_fails_once_beside_a_bystander():
    assert search("a", poison=in_turn(True, False, False), bystanders=("m",)) == [
        "ALONE a| fails: as many suspects",
        "ALONE m| passes",
        "ALONE a| passes",
        "RELEASE a|m passes",
        "Over",
    ]


def test_the_trials_of_two_requests_of_which_one_fails_once_after_all_others_failed():
    assert search("ab", "xy", poison=in_turn(True, True, True, True, False, False)) == [
        "RELEASE xy| fails: fewer suspects",
        "ALONE y| fails: as many suspects",
        "ALONE x| fails: as many suspects",
        "ALONE b| fails: as many suspects",
        "ALONE a| passes",
        "ALONE b| passes",
        "ALONE x| passes",
        "ALONE y| passes",
        "JOIN b|a passes",
        "RELEASE xy|ab passes",
        "Over",
    ]


def test_the_trials_of_many_requests_with_poison_in_both_halves_and_in_the_rest():
    assert search("abcdefghijklmnop", "xyz", poison=any_of("a", "k", "y"), turns=80) == [
        "HALF abcdefgh| fails: fewer suspects",
        "CONTROL ijklmnop| fails: as many suspects",
        "HALF abcd| fails: as many suspects",
        "ALONE d| passes",
        "ALONE c| passes",
        "ALONE b| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH b| passes",
        "ALONE a| fails: fewer suspects",
        "VOUCH b| passes",
        "PoisonFound a 6",
        "RELEASE xyzijklmnopefghbcd| fails: fewer suspects",
        "HALF xyzijklmn| fails: as many suspects",
        "HALF xyzi| fails: as many suspects",
        "VOUCH b| passes",
        "ALONE i| passes",
        "ALONE z| passes",
        "ALONE y| fails: fewer suspects",
        "VOUCH b| passes",
        "ALONE y| fails: fewer suspects",
        "VOUCH b| passes",
        "PoisonFound y 6",
        "RELEASE opefghbcdjklmnxzi| fails: fewer suspects",
        "HALF opefghbc| passes",
        "HALF djkl|bcefghop fails: fewer suspects",
        "VOUCH bcefghop| passes",
        "ALONE l| passes",
        "ALONE k| fails: fewer suspects",
        "VOUCH bcefghop| passes",
        "ALONE k| fails: fewer suspects",
        "VOUCH bcefghop| passes",
        "PoisonFound k 9",
        "RELEASE mnxzidjl|bcefghop passes",
        "Over",
    ]


def test_the_trials_of_many_requests_of_which_only_the_first_two_batches_fail():
    assert search("abcdefghijklmnop", poison=in_turn(True, True)) == [
        "HALF abcdefgh| fails: fewer suspects",
        "CONTROL ijklmnop| fails: as many suspects",
        "HALF abcd| passes",
        "ALONE h| passes",
        "ALONE g| passes",
        "ALONE f| passes",
        "ALONE e| passes",
        "JOIN e|abcd passes",
        "JOIN f|abcde passes",
        "JOIN g|abcdef passes",
        "JOIN h|abcdefg passes",
        "RELEASE ijklmnop|abcdefgh passes",
        "Over",
    ]


def test_the_trials_of_many_requests_where_a_half_fails_after_the_rest_passed():
    assert search(
        "abcdefghijklmnopqrstuvwx",
        poison=in_turn(True, True, True, False, False, False, False, False, False, False, True),
    ) == [
        "HALF abcdefghijkl| fails: fewer suspects",
        "CONTROL mnopqrstuvwx| fails: as many suspects",
        "HALF abcdef| fails: as many suspects",
        "HALF abc| passes",
        "ALONE f| passes",
        "ALONE e| passes",
        "ALONE d| passes",
        "JOIN d|abc passes",
        "JOIN e|abcd passes",
        "JOIN f|abcde passes",
        "RELEASE mnopqrstuvwxghijkl|abcdef fails: fewer suspects",
        "HALF mnopqrstu|abcdef passes",
        "HALF vwxg|abcdefmnopqrstu passes",
        "HALF hi|abcdefgmnopqrstuvwx passes",
        "ALONE l| passes",
        "ALONE k| passes",
        "ALONE j| passes",
        "JOIN j|abcdefghimnopqrstuvwx passes",
        "JOIN k|abcdefghijmnopqrstuvwx passes",
        "JOIN l|abcdefghijkmnopqrstuvwx passes",
        "Over",
    ]


def test_a_host_without_a_request_of_its_own_is_asked_four_times():
    bisection = Bisection(["a"])
    bisection.next()
    bisection.fails({"a"})
    steps = [bisection.next() for _ in range(5)]
    assert steps == [NeedsControl()] * 4 + [Over("no request passes that could be compared with the suspects")]


def test_there_is_no_trial_before_the_first_and_none_after_a_finding():
    bisection = Bisection(["a"])
    assert bisection.trial is None
    assert bisection.next() is bisection.trial
    bisection.fails({"a"})
    assert (bisection.next(), bisection.trial) == (NeedsControl(), None)


def test_a_failure_of_a_half_leaves_fewer_suspects_and_one_of_the_control_does_not():
    bisection = Bisection(list("abcdefgh"))
    bisection.next()
    assert (bisection.fails(set("abcd")), bisection.suspects, bisection.open) == (True, list("abcd"), 8)
    bisection.next()
    assert (bisection.fails(set("efgh")), bisection.open) == (False, 8)


def test_a_failure_without_a_request_on_trial_says_nothing_of_the_suspects():
    bisection = Bisection(list("abcdefgh"))
    bisection.next()
    assert (bisection.fails({"z"}), bisection.suspects) == (None, list("abcdefgh"))


def test_of_a_half_only_the_requests_that_ran_are_suspected_further():
    bisection = Bisection(list("abcdefgh"))
    bisection.next()
    bisection.fails({"b", "c"})
    assert (bisection.suspects, bisection.open) == (["b", "c"], 8)


def test_a_lone_failure_counts_as_progress_only_after_a_request_has_passed():
    bisection = Bisection(list("abc"))
    bisection.next()
    assert bisection.fails({"c"}) is False
    bisection.next()
    bisection.passes()
    bisection.next()
    assert bisection.fails({"c"}) is True


def test_a_doubt_takes_back_every_lone_failure():
    bisection = Bisection(list("ab"), "x")
    lines = follow(bisection, in_turn(False, True), turns=2)
    assert lines == ["RELEASE x| passes", "ALONE b| fails: fewer suspects"]
    bisection.doubt()
    assert follow(bisection, in_turn(False, True, False, True, False), turns=6) == [
        "VOUCH x| passes",
        "ALONE b| fails: fewer suspects",
        "VOUCH x| passes",
        "ALONE b| fails: fewer suspects",
        "VOUCH x| passes",
        "PoisonFound b 5",
    ]


def test_a_confirmed_request_that_is_doubted_is_a_suspect_again():
    bisection = Bisection(list("ab"), "x")
    follow(bisection, in_turn(False, True, False, True), turns=4)
    assert bisection.suspects == ["a"]
    bisection.doubt()
    assert bisection.suspects == ["a", "b"]


def test_requests_that_left_are_forgotten_wherever_they_were():
    bisection = Bisection(list("ab"), "xy")
    follow(bisection, in_turn(False, True, False, True), turns=4)
    bisection.keep({"a", "x"})
    assert (bisection.suspects, bisection.passed, bisection.open) == (["a"], {"x"}, 1)
    assert follow(bisection, in_turn()) == ["VOUCH x| passes", "ALONE a| passes", "JOIN a|x passes", "Over"]


def test_requests_that_ran_well_in_a_failed_step_are_cleared():
    bisection = Bisection(list("abcdefgh"), "xy")
    bisection.next()
    bisection.fails(set("abcd"))
    bisection.ran({"c", "d", "x"})
    assert (bisection.suspects, bisection.passed, bisection.open) == (["a", "b"], {"c", "d", "x"}, 7)
    assert follow(bisection, in_turn(), turns=1) == ["CONTROL efgh| passes"]


def test_no_request_that_ran_well_shows_nothing():
    bisection = Bisection(["a"])
    bisection.next()
    bisection.fails({"a"})
    bisection.ran(set())
    assert bisection.next() == NeedsControl()


def test_bystanders_of_a_trial_are_cleared_but_not_of_a_request_alone():
    bisection = Bisection(list("abcdefgh"), "xy")
    bisection.next()
    bisection.clear({"x"})
    assert (bisection.passed, bisection.open) == ({"x"}, 9)
    alone = Bisection(["a"], "x")
    alone.clear({"x"})
    alone.next()
    alone.passes()
    alone.next()
    assert alone.trial.kind is Kind.ALONE
    alone.clear({"a"})
    assert alone.suspects == ["a"]


def test_after_the_departure_of_a_request_on_trial_the_next_failure_alone_counts():
    bisection = Bisection(list("ab"))
    bisection.next()
    bisection.leaves()
    bisection.keep({"a"})
    bisection.next()
    assert bisection.fails({"a"}) is True


def test_requests_that_left_before_they_were_tried_are_not_tried():
    bisection = Bisection(list("abcdefgh"), "xy")
    bisection.next()
    bisection.fails(set("abcd"))
    bisection.keep(set("abcdefx"))
    assert bisection.open == 7
    assert follow(bisection, in_turn(), turns=1) == ["CONTROL ef| passes"]


def test_there_is_no_trial_while_a_finding_is_told():
    bisection = Bisection(list("ab"), "x")
    follow(bisection, in_turn(False, True, False, True, False), turns=6)
    assert bisection.trial is None


def test_a_suspect_that_fails_once_and_then_passes_is_still_one_suspect():
    bisection = Bisection(list("abcd"), "xy")
    assert follow(bisection, in_turn(False, True), turns=4)[-1] == "ALONE d| passes"
    assert bisection.open == 4


def test_requests_that_are_not_suspected_and_stay_are_released_at_last():
    bisection = Bisection(list("abcdefgh"), "xy")
    bisection.next()
    bisection.fails(set("abcd"))
    bisection.keep(set("abcdefghx"))
    assert bisection.open == 9
