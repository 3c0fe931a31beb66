"""Requests that are computed again leave room in every step for those that decode beside them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")

from holdfast.hosts.vllm.engine.pacing import Pacing


def test_a_step_has_room_for_everybody_who_decodes_and_for_a_bounded_part_of_the_histories() -> None:
    assert Pacing(512).step_tokens(whole_step=8192, beside=40) == 552


def test_a_step_is_never_larger_than_the_hosts_own() -> None:
    assert Pacing(512).step_tokens(whole_step=256, beside=40) == 256


def test_it_is_over_when_everybody_has_caught_up() -> None:
    pacing = Pacing(512)
    pacing.begin("a", 1000)
    pacing.begin("b", 300)
    pacing.note({"a": 512, "b": 300})
    assert "a" in pacing
    assert "b" not in pacing
    assert not pacing.is_over
    pacing.note({"a": 1000})
    assert pacing.is_over


def test_one_that_has_left_is_not_waited_for() -> None:
    pacing = Pacing(512)
    pacing.begin("a", 1000)
    pacing.note({})
    assert pacing.is_over


def test_one_that_was_preempted_in_the_middle_is_still_on_its_way() -> None:
    pacing = Pacing(512)
    pacing.begin("a", 1000)
    pacing.note({"a": 900})
    pacing.note({"a": 0})
    assert "a" in pacing


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.integers(1, 600), st.integers(0, 64))
def test_every_history_is_computed_in_the_end_and_decodes_are_in_every_step(
    histories: list[int], tokens_per_step: int, beside: int
) -> None:
    pacing, left = Pacing(tokens_per_step), dict(enumerate(histories))
    for number, tokens in left.items():
        pacing.begin(str(number), tokens)
    steps = 0
    while not pacing.is_over:
        room = pacing.step_tokens(8192, beside) - beside
        assert 0 < room <= tokens_per_step
        for number, tokens in left.items():
            left[number] -= (taken := min(tokens, room))
            room -= taken
        pacing.note({str(number): histories[number] - tokens for number, tokens in left.items()})
        steps += 1
    assert steps == -(-sum(histories) // tokens_per_step)
