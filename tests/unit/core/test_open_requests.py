"""The front end's journal holds what is open: the request, and exactly what was delivered."""

from holdfast.core.open_requests import OpenRequests


def journal():
    requests = OpenRequests()
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
