"""Interruptions: the longest wait between two tokens around a recovery, whichever news comes late."""

from holdfast.core.requests.interruptions import Interruption, Interruptions

HERE, THERE = 0, 1


def stream(*times, engine=HERE):
    """Interruptions that have seen the tokens of one stream."""
    seen = Interruptions()
    for now in times:
        assert seen.token("a", engine, now) is None
    return seen


def test_the_wait_from_the_last_token_to_the_first_after_the_recovery_counts():
    seen = stream(1.0, 1.1)
    seen.follow(HERE, False, 0, ["a"], 1.15)
    seen.follow(HERE, True, 1, ["a"], 1.4)
    told = seen.token("a", HERE, 1.5)
    assert told is not None
    assert (round(told.longest_wait_s, 3), round(told.first_token_s, 3)) == (0.4, 0.1)
    assert seen.watched == 0
    assert seen.token("a", HERE, 9.0) is None


def test_the_first_token_of_all_streams_alone_tells_the_time_since_the_recovery():
    seen = stream(1.0)
    seen.token("b", HERE, 1.0)
    seen.follow(HERE, False, 0, ["a", "b"], 1.1)
    seen.follow(HERE, True, 1, ["a", "b"], 1.4)
    assert seen.token("a", HERE, 1.5).first_token_s is not None
    assert seen.token("b", HERE, 1.6).first_token_s is None


def test_tokens_that_were_under_way_at_the_fault_do_not_end_the_interruption():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a"], 1.1)
    assert seen.token("a", HERE, 1.2) is None
    seen.follow(HERE, True, 1, ["a"], 2.0)
    assert round(seen.token("a", HERE, 2.2).longest_wait_s, 3) == 1.0


def test_a_token_before_the_news_of_the_recovery_ends_the_wait_and_the_next_one_tells():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a"], 1.1)
    assert seen.token("a", HERE, 1.9) is None
    seen.follow(HERE, True, 1, ["a"], 1.91)
    assert round(seen.token("a", HERE, 1.95).longest_wait_s, 3) == 0.9


def test_a_recovery_that_is_told_as_a_whole_counts_the_wait_before_the_last_token():
    seen = stream(1.0, 1.8)
    seen.follow(HERE, True, 1, ["a"], 1.85)
    assert round(seen.token("a", HERE, 1.9).longest_wait_s, 3) == 0.8


def test_a_stream_that_moved_ends_its_interruption_with_the_first_token_of_the_other_engine_core():
    seen = stream(1.0)
    seen.follow(HERE, False, 1, ["a"], 1.1)
    assert seen.token("a", THERE, 1.6) == Interruption(0.6000000000000001)


def test_nothing_is_told_while_the_engine_core_of_the_stream_is_unwell():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a"], 1.1)
    seen.follow(THERE, False, 0, [], 1.1)
    assert seen.token("a", THERE, 1.2) is None
    assert seen.token("a", HERE, 1.3) is None
    assert seen.watched == 1


def test_a_second_fault_before_the_first_token_belongs_to_the_same_interruption():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a"], 1.1)
    seen.follow(HERE, True, 1, ["a"], 1.2)
    seen.follow(HERE, False, 1, ["a"], 1.3)
    seen.follow(HERE, True, 2, ["a"], 1.4)
    assert seen.token("a", HERE, 2.0).longest_wait_s == 1.0


def test_streams_without_a_token_and_closed_streams_are_not_interrupted():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a", "waiting"], 1.1)
    assert seen.watched == 1
    seen.closed("a")
    seen.closed("a")
    assert seen.watched == 0


def test_the_replacement_of_a_lost_engine_core_begins_the_wait_for_the_first_token():
    seen = stream(1.0)
    seen.follow(HERE, False, 1, ["a"], 1.1)
    seen.follow(HERE, True, 1, ["a"], 5.0)
    assert seen.token("a", HERE, 5.5) == Interruption(4.5, 0.5)


def test_only_changes_are_news():
    seen = Interruptions()
    assert not seen.is_news(HERE, True, 0)
    assert seen.is_news(HERE, False, 0)
    seen.follow(HERE, False, 0, [], 1.0)
    assert not seen.is_news(HERE, False, 0)
    assert seen.is_news(HERE, True, 1)


def test_an_engine_core_that_is_well_without_a_repair_ends_no_interruption():
    seen = stream(1.0)
    seen.follow(HERE, False, 0, ["a"], 1.1)
    seen.follow(HERE, True, 0, ["a"], 1.2)
    assert seen.token("a", HERE, 1.3) is None
    assert seen.watched == 1
