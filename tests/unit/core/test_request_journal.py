"""The front end's journal holds what is open: the request, and exactly what was delivered."""

import gc
import tracemalloc

import pytest

from holdfast.core.requests.journal import RequestJournal


def journal():
    requests = RequestJournal()
    requests.open("a", "request a")
    return requests


def test_what_was_delivered_stands_behind_the_request_in_order():
    requests = journal()
    requests.deliver("a", [1, 2])
    requests.deliver("a", [3])
    assert (requests.get("a").request, list(requests.get("a").delivered)) == ("request a", [1, 2, 3])


def test_a_request_that_is_open_stays_as_it_began():
    requests = journal()
    requests.deliver("a", [1])
    requests.open("a", "another input of its session")
    assert (requests.get("a").request, list(requests.get("a").delivered)) == ("request a", [1])


def test_nothing_is_kept_of_what_has_ended():
    requests = journal()
    requests.deliver("a", [1] * 1000)
    assert requests.delivered_bytes == 8000
    requests.close("a")
    requests.close("a")
    requests.deliver("a", [2])
    assert (len(requests), requests.delivered_bytes, "a" in requests, requests.get("a")) == (0, 0, False, None)


def test_requests_may_be_closed_while_they_are_gone_through_oldest_first():
    requests = journal()
    requests.open("b", "request b")
    seen = []
    for request_id in requests:
        seen.append(request_id)
        requests.close(request_id)
    assert (seen, len(requests)) == (["a", "b"], 0)


def traced_bytes(work):
    gc.collect()
    tracemalloc.start()
    try:
        kept = work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0], kept
    finally:
        tracemalloc.stop()


STREAMS, TOKENS = 500, 1000


@pytest.mark.no_cover  # every allocation is traced already
def test_five_hundred_open_streams_take_eight_bytes_a_token_and_little_besides():
    """What a token costs is bounded, whatever its value, and so is what a request costs beside its tokens."""

    def fill():
        requests = RequestJournal()
        names = [f"request {number}" for number in range(STREAMS)]
        for name in names:
            requests.open(name, None)
        for token in range(TOKENS):  # as they come: one of each stream at a time
            delivered = [token + 100_000]
            for name in names:
                requests.deliver(name, delivered)
        return requests

    held, requests = traced_bytes(fill)
    assert requests.delivered_bytes == STREAMS * TOKENS * 8
    assert held < requests.delivered_bytes * 1.15 + STREAMS * 512, f"{held / STREAMS / TOKENS:.2f} bytes a token"
    print(f"{held / 2**20:.2f} MiB for {STREAMS} streams of {TOKENS} tokens")


def test_five_hundred_streams_that_have_ended_leave_nothing():
    def fill_and_empty():
        requests = RequestJournal()
        for number in range(STREAMS):
            requests.open(f"request {number}", None)
            requests.deliver(f"request {number}", range(TOKENS))
        for request_id in requests:
            requests.close(request_id)
        return requests

    held, _ = traced_bytes(fill_and_empty)
    assert held < 64 * 1024  # the table of a dictionary that was larger once


def test_a_request_that_no_engine_core_can_take_over_says_why():
    requests = journal()
    requests.open("b", "request b", "its session is open")
    assert [requests.get(i).unmovable for i in "ab"] == ["", "its session is open"]


def test_an_input_of_several_requests_counts_once_and_until_the_last_of_them_has_ended():
    requests = RequestJournal(max_input_bytes=100)
    requests.open("a", None, inputs={1: 60})
    requests.open("a", None, inputs={9: 40})  # open already
    requests.open("b", None, inputs={1: 60, 2: 30})
    assert requests.input_bytes == 90
    assert [requests.has_room(inputs) for inputs in ({1: 60, 3: 10}, {3: 11}, {})] == [True, False, True]
    requests.close("a")
    assert requests.input_bytes == 90
    requests.close("b")
    requests.close("b")
    assert (requests.input_bytes, requests.has_room({3: 100}), requests.has_room({3: 101})) == (0, True, False)


def test_inputs_that_come_later_count_with_their_request():
    requests = RequestJournal(max_input_bytes=100)
    requests.open("a", None, inputs={1: 60})
    requests.add_inputs(requests.get("a"), {1: 60, 2: 40})
    assert (requests.input_bytes, requests.has_room({3: 1})) == (100, False)
    requests.close("a")
    assert requests.input_bytes == 0
