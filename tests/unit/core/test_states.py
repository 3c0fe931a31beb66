"""The table of states, checked pair by pair."""

import itertools

import pytest

from holdfast.core.states import TRANSITIONS, EngineState, IllegalTransition, Trigger, next_state

EVERY_PAIR = list(itertools.product(EngineState, Trigger))
UNKNOWN_PAIRS = [pair for pair in EVERY_PAIR if pair not in TRANSITIONS]


@pytest.mark.parametrize(("state", "trigger"), TRANSITIONS)
def test_every_pair_in_the_table_leads_where_the_table_says(state, trigger):
    assert next_state(state, trigger) is TRANSITIONS[state, trigger]


@pytest.mark.parametrize(("state", "trigger"), UNKNOWN_PAIRS)
def test_every_pair_that_is_not_in_the_table_raises_and_names_both(state, trigger):
    with pytest.raises(IllegalTransition, match=f"{trigger} makes no sense while {state}"):
        next_state(state, trigger)


@pytest.mark.parametrize("trigger", Trigger)
def test_dead_is_final(trigger):
    with pytest.raises(IllegalTransition):
        next_state(EngineState.DEAD, trigger)


@pytest.mark.parametrize("state", [s for s in EngineState if s is not EngineState.DEAD])
def test_every_state_but_dead_can_be_defeated(state):
    assert next_state(state, Trigger.DEFEATED) is EngineState.DEAD


@pytest.mark.parametrize("state", EngineState)
def test_every_state_with_a_process_knows_what_to_do_with_a_fault(state):
    has_process = state.is_attached or state is EngineState.STARTING
    assert ((state, Trigger.FAULT) in TRANSITIONS) is has_process


def test_every_state_can_be_reached_from_the_start():
    reached, edge = {EngineState.STARTING}, {EngineState.STARTING}
    while edge:
        edge = {to for (at, _), to in TRANSITIONS.items() if at in edge} - reached
        reached |= edge
    assert reached == set(EngineState)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (EngineState.STARTING, "healthy"),
        (EngineState.HEALTHY, "healthy"),
        (EngineState.FAULTED, "unhealthy"),
        (EngineState.PAUSING, "unhealthy"),
        (EngineState.PAUSED, "unhealthy"),
        (EngineState.RECOVERING, "unhealthy"),
        (EngineState.LEFT_OUT, "dead"),
        (EngineState.DEAD, "dead"),
    ],
)
def test_the_wire_knows_three_words_for_a_state(state, status):
    assert state.on_the_wire == status


def test_only_a_healthy_engine_makes_progress():
    assert [s for s in EngineState if s.makes_progress] == [EngineState.HEALTHY]
