"""Where requests go on after a failed step: laws over drawn block tables, and a few told stories."""

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.requests.rewind import (
    RequestBlocks,
    RewindPlan,
    given_up,
    given_up_blocks,
    plan_restart,
    plan_rewind,
    release_until_rest_fits,
)

BLOCK = 4


def blocks_for(tokens):
    return -(-tokens // BLOCK)


@st.composite
def a_request(draw, name, blocks):
    """A request whose blocks cover what is computed, anything of which may be in flight."""
    computed = draw(st.integers(0, len(blocks) * BLOCK))
    return RequestBlocks(
        request_id=name,
        total=draw(st.integers(max(1, computed), computed + 6)),
        computed=computed,
        in_flight=draw(st.integers(0, computed)),
        blocks=blocks,
        keepable=draw(st.sampled_from([True, True, True, False])),
    )


@st.composite
def prefix_sharing(draw):
    """Requests over a tree of prefixes: who shares a block shares it at the same place."""
    tables, new = [], iter(range(1000))
    for _ in range(draw(st.integers(1, 5))):
        parent = draw(st.sampled_from([[], *tables]))
        shared = parent[: draw(st.integers(0, len(parent)))]
        tables.append(shared + [next(new) for _ in range(draw(st.integers(0, 4)))])
    return [draw(a_request(f"r{i}", blocks)) for i, blocks in enumerate(tables)]


@st.composite
def any_sharing(draw):
    """Requests that share blocks however they like."""
    tables = draw(st.lists(st.lists(st.integers(0, 8), max_size=5, unique=True), min_size=1, max_size=5))
    return [draw(a_request(f"r{i}", blocks)) for i, blocks in enumerate(tables)]


held_requests = prefix_sharing() | any_sharing()


def in_flight_offset(request, index):
    """First offset in the request's block `index` that it had not written for certain."""
    return min(BLOCK, max(0, request.computed - request.in_flight - index * BLOCK))


@settings(max_examples=200)
@given(held_requests)
def test_no_kept_token_lies_at_or_behind_one_in_flight_of_anyone_who_shares_the_block(requests):
    plan = plan_rewind(requests, BLOCK)
    unwritten = {}
    for r in requests:
        for index, block in enumerate(r.blocks):
            offset = in_flight_offset(r, index)
            unwritten[block] = min(offset, unwritten.get(block, BLOCK))
    for r in requests:
        for token in range(plan.good_tokens[r.request_id]):
            assert token % BLOCK < unwritten[r.blocks[token // BLOCK]]


@settings(max_examples=200)
@given(held_requests)
def test_no_token_is_kept_behind_one_that_is_not_good(requests):
    """KV is computed from all KV before it: behind a gap of anybody's nothing is good."""
    plan = plan_rewind(requests, BLOCK)
    for r in requests:
        good = plan.good_tokens[r.request_id]
        whole = r.blocks[: good // BLOCK]
        assert not plan.suspect_blocks.intersection(whole)
        assert set(r.blocks[good // BLOCK :]) <= plan.suspect_blocks or not r.keepable


@given(held_requests)
def test_good_tokens_are_at_least_none_and_leave_one_to_compute(requests):
    plan = plan_rewind(requests, BLOCK)
    for r in requests:
        good = plan.good_tokens[r.request_id]
        assert 0 <= good < r.total
        assert good <= r.computed - r.in_flight
        assert r.keepable or good == 0
        assert plan.kept_blocks(r.request_id) == blocks_for(good)


@settings(max_examples=200)
@given(held_requests)
def test_a_request_that_shares_nothing_gives_up_nothing_but_what_was_in_flight(requests):
    plan = plan_rewind(requests, BLOCK)
    holders = Counter(b for r in requests for b in r.blocks)
    for r in requests:
        if r.keepable and all(holders[b] == 1 for b in r.blocks):
            assert plan.good_tokens[r.request_id] == min(r.computed - r.in_flight, r.total - 1)


@settings(max_examples=200)
@given(prefix_sharing())
def test_a_whole_block_is_given_up_only_where_somebody_is_in_flight_before_its_end(requests):
    plan = plan_rewind(requests, BLOCK)
    for r in requests:
        good, own = plan.good_tokens[r.request_id], min(r.computed - r.in_flight, r.total - 1)
        if r.keepable and good < own:
            at = good // BLOCK
            others = [s for s in requests if s is not r and r.blocks[at] in s.blocks]
            assert any(min(s.computed - s.in_flight, s.total - 1) < (at + 1) * BLOCK for s in others)


@given(held_requests)
def test_a_partly_kept_block_has_one_writer(requests):
    plan = plan_rewind(requests, BLOCK)
    good = {r.request_id: plan.good_tokens[r.request_id] for r in requests}
    partial = [r.blocks[good[r.request_id] // BLOCK] for r in requests if good[r.request_id] % BLOCK]
    kept = Counter(b for r in requests for b in r.blocks[: plan.kept_blocks(r.request_id)])
    assert all(kept[block] == 1 for block in partial)


@given(held_requests)
def test_planning_again_what_was_planned_changes_nothing(requests):
    plan = plan_rewind(requests, BLOCK)
    again = [
        RequestBlocks(r.request_id, r.total, good, 0, r.blocks[: blocks_for(good)], r.keepable)
        for r in requests
        for good in [plan.good_tokens[r.request_id]]
    ]
    assert plan_rewind(again, BLOCK).good_tokens == plan.good_tokens


@given(held_requests)
def test_blocks_become_free_exactly_when_nobody_keeps_them(requests):
    plan = plan_rewind(requests, BLOCK)
    kept = [set(r.blocks[: plan.kept_blocks(r.request_id)]) for r in requests]
    everything = set().union(*(r.blocks for r in requests))
    assert given_up_blocks(plan, requests) == len(everything - set().union(*kept))


# ---- told stories


def request(name, computed, in_flight, blocks, total=None, keepable=True):
    return RequestBlocks(name, total or computed + 1, computed, in_flight, blocks, keepable)


def test_a_decode_in_flight_costs_one_token():
    plan = plan_rewind([request("a", computed=10, in_flight=1, blocks=[1, 2, 3])], BLOCK)
    assert plan.good_tokens == {"a": 9}
    assert plan.suspect_blocks == {3}


def test_a_decode_that_was_to_fill_its_block_keeps_what_stands_in_it():
    plan = plan_rewind([request("a", computed=8, in_flight=1, blocks=[1, 2])], BLOCK)
    assert (plan.good_tokens["a"], plan.kept_blocks("a"), plan.suspect_blocks) == (7, 2, {2})


def test_who_hit_a_block_that_a_failed_step_was_to_write_starts_before_it():
    writer = request("writer", computed=10, in_flight=4, blocks=[1, 2, 3])
    reader = request("reader", computed=11, in_flight=0, blocks=[1, 2, 4])
    assert plan_rewind([writer, reader], BLOCK).good_tokens == {"writer": 6, "reader": 4}


def test_suspicion_travels_from_one_to_the_next_and_is_found_in_any_order():
    a = request("a", computed=8, in_flight=4, blocks=[1, 2])
    b = request("b", computed=12, in_flight=0, blocks=[1, 2, 3])
    c = request("c", computed=16, in_flight=0, blocks=[1, 2, 3, 4])
    for order in ([a, b, c], [c, b, a]):
        plan = plan_rewind(order, BLOCK)
        assert plan.good_tokens == {"a": 4, "b": 4, "c": 4}
        assert plan.suspect_blocks == {2, 3, 4}


def test_who_must_start_anew_costs_the_others_nothing():
    anew = request("anew", computed=8, in_flight=0, blocks=[1, 2], keepable=False)
    other = request("other", computed=10, in_flight=1, blocks=[1, 2, 3])
    plan = plan_rewind([anew, other], BLOCK)
    assert plan.good_tokens == {"anew": 0, "other": 9}
    assert plan.suspect_blocks == {3}


def test_two_who_hold_the_same_part_of_a_block_both_start_before_it():
    twins = [request(name, computed=6, in_flight=0, blocks=[1, 2]) for name in "ab"]
    assert plan_rewind(twins, BLOCK).good_tokens == {"a": 4, "b": 4}


def test_no_requests_need_no_plan():
    assert plan_rewind([], BLOCK) == RewindPlan({}, frozenset(), BLOCK)


# ---- releasing what does not fit


def needed(plan, requests, step_tokens):
    total = 0
    for r in requests:
        if kept := plan.good_tokens[r.request_id]:
            reach = blocks_for(min(r.total, kept + step_tokens))
            total += reach + 1 - plan.kept_blocks(r.request_id)
    return total


@settings(max_examples=150)
@given(held_requests, st.integers(0, 12), st.integers(1, 12))
def test_requests_are_released_from_the_back_and_no_more_than_must(requests, free, step_tokens):
    plan = plan_rewind(requests, BLOCK)
    fitting = release_until_rest_fits(plan, requests, free, step_tokens)
    released = [r for r in requests if fitting.good_tokens[r.request_id] != plan.good_tokens[r.request_id]]
    assert all(fitting.good_tokens[r.request_id] == 0 for r in released)
    keeping = [r for r in requests if fitting.good_tokens[r.request_id]]
    assert not released or not keeping or requests.index(keeping[-1]) < requests.index(released[0])
    gained = given_up_blocks(fitting, requests) - given_up_blocks(plan, requests)
    assert needed(fitting, requests, step_tokens) <= free + gained
    if released:
        first = released[0]
        one_less = {**fitting.good_tokens, first.request_id: plan.good_tokens[first.request_id]}
        before = RewindPlan(one_less, plan.suspect_blocks, BLOCK)
        gained = given_up_blocks(before, requests) - given_up_blocks(plan, requests)
        assert needed(before, requests, step_tokens) > free + gained
    assert fitting.suspect_blocks == plan.suspect_blocks


def test_where_not_even_one_request_fits_all_are_released():
    pair = [request("a", 4, 0, (0,), total=30), request("b", 4, 0, (1,), total=30)]
    plan = plan_rewind(pair, BLOCK)
    assert release_until_rest_fits(plan, pair, 0, 20).good_tokens == {"a": 0, "b": 0}


def test_a_shared_block_is_not_free_before_its_last_keeper_is_released():
    pair = [request(name, computed=9, in_flight=0, blocks=[1, 2, tail]) for name, tail in (("a", 3), ("b", 4))]
    plan = plan_rewind(pair, BLOCK)
    assert release_until_rest_fits(plan, pair, 0, 1).good_tokens == {"a": 9, "b": 0}
    assert given_up_blocks(release_until_rest_fits(plan, pair, 0, 1), pair) == 1


def test_where_a_rank_lost_its_memory_no_kv_is_good_and_every_block_in_use_is_suspect():
    held = [RequestBlocks("a", 10, 9, 0, (0, 1, 2)), RequestBlocks("b", 4, 0, 0, ())]
    plan = plan_restart(held, 4)
    assert (plan.good_tokens, plan.suspect_blocks) == ({"a": 0, "b": 0}, frozenset({0, 1, 2}))


def test_the_last_token_of_a_request_is_always_computed_anew():
    assert plan_rewind([request("a", computed=5, in_flight=0, blocks=[1, 2], total=5)], BLOCK).good_tokens == {"a": 4}


def test_a_block_that_one_holder_has_not_begun_to_write_is_good_for_no_other():
    writer = request("writer", computed=8, in_flight=4, blocks=[1, 2])
    reader = request("reader", computed=5, in_flight=0, blocks=[1, 2])
    assert plan_rewind([writer, reader], BLOCK).good_tokens == {"writer": 4, "reader": 4}


def test_of_two_holders_of_a_block_the_one_that_has_written_less_decides():
    first = request("first", computed=8, in_flight=2, blocks=[1, 2])
    second = request("second", computed=8, in_flight=1, blocks=[1, 2])
    assert plan_rewind([first, second], BLOCK).good_tokens == {"first": 6, "second": 4}


def test_not_even_one_token_behind_a_suspect_block_is_kept_by_a_third_holder():
    writer = request("writer", computed=10, in_flight=6, blocks=[1, 2, 3])
    reader = request("reader", computed=9, in_flight=0, blocks=[1, 2, 4])
    third = request("third", computed=9, in_flight=0, blocks=[5, 6, 4])
    assert plan_rewind([writer, reader, third], BLOCK).good_tokens == {"writer": 4, "reader": 4, "third": 8}


def four_that_decode(total=20):
    """Return requests of two full blocks each, which need two more blocks for a step."""
    return [request(n, 8, 0, [2 * i + 1, 2 * i + 2], total) for i, n in enumerate("abcd")]


def kept_with(free_blocks, step_tokens, requests):
    plan = release_until_rest_fits(plan_rewind(requests, BLOCK), requests, free_blocks, step_tokens)
    return "".join(name for name, good in plan.good_tokens.items() if good)


def test_as_many_requests_are_released_as_the_rest_needs_blocks():
    requests = four_that_decode()
    assert [kept_with(free, 4, requests) for free in (8, 7, 4, 3, 0)] == ["abcd", "abc", "abc", "ab", "ab"]


def test_a_step_that_ends_within_a_block_needs_the_whole_block():
    assert [kept_with(free, 3, four_that_decode()) for free in (8, 7)] == ["abcd", "abc"]


def test_a_block_that_another_request_keeps_is_not_free():
    shared = [request("a", 8, 0, [1, 2], 20), request("b", 8, 0, [1, 3], 20)]
    assert kept_with(1, 4, shared) == "a"
    assert kept_with(0, 4, shared) == ""


def test_where_the_host_admits_only_whole_sequences_the_rest_fits_as_a_whole():
    """Two prefills of five blocks, of which each holds two: three more for the first, and one to spare."""
    pair = [request("a", 8, 0, [1, 2], 20), request("b", 8, 0, [3, 4], 20)]
    assert [kept_with(free, 20, pair) for free in (8, 7, 2, 1)] == ["ab", "a", "a", ""]


def test_a_draft_may_need_more_than_one_block_to_spare():
    plan = plan_rewind(pair := [request("a", 8, 0, [1, 2]), request("b", 8, 0, [3, 4])], BLOCK)
    kept = [release_until_rest_fits(plan, pair, free, 1, spare_blocks=3).good_tokens for free in (8, 7)]
    assert kept == [{"a": 8, "b": 8}, {"a": 8, "b": 0}]


def test_tokens_that_belong_together_are_kept_whole_or_not_at_all():
    requests = [RequestBlocks(name, 13, 12, 1, [1, 2, 3], together=n) for name, n in (("whole", 11), ("cut", 12))]
    apart = [dataclasses.replace(r, blocks=[b + 10 * i for b in r.blocks]) for i, r in enumerate(requests)]
    assert plan_rewind(apart, BLOCK).good_tokens == {"whole": 11, "cut": 0}


def test_where_all_is_given_up_nothing_is_kept_and_what_is_suspect_stays_suspect():
    pair = [request("a", 8, 1, [1, 2]), request("b", 8, 0, [3, 4])]
    plan = plan_rewind(pair, BLOCK)
    assert given_up(plan) == RewindPlan({"a": 0, "b": 0}, plan.suspect_blocks, BLOCK)
    assert given_up_blocks(given_up(plan), pair) == 4
