"""Who of the further nodes is alive, suspected or lost, on virtual time."""

from __future__ import annotations

from holdfast.core.engine_core.membership import (
    HEARTBEAT_S,
    LOOK_S,
    LOST_AFTER_S,
    SUSPECTED_AFTER_S,
    Membership,
    NodeState,
)

LATE_S = 5.0


def looked(members: Membership, begin: float, end: float) -> list[tuple[float, dict[int, NodeState]]]:
    """Look every `LOOK_S`; return the changes, with the time of each."""
    found = []
    for turn in range(round((end - begin) / LOOK_S) + 1):
        now = begin + turn * LOOK_S
        if changed := members.look(now):
            found.append((round(now, 3), changed))
    return found


def test_a_silent_node_is_suspected_and_then_lost() -> None:
    members = Membership(range(1, 3))
    assert members.heard(1, "a", 10.0)
    (suspected_at, suspected), (lost_at, lost) = looked(members, 10.0, 20.0)
    assert (suspected, lost) == ({1: NodeState.SUSPECTED}, {1: NodeState.LOST})
    assert 0 <= suspected_at - 10 - SUSPECTED_AFTER_S < 2 * LOOK_S
    assert 0 <= lost_at - 10 - LOST_AFTER_S < 2 * LOOK_S
    assert SUSPECTED_AFTER_S > 2 * HEARTBEAT_S
    assert members.states() == {1: NodeState.LOST, 2: NodeState.EXPECTED}


def test_a_node_that_speaks_in_time_is_alive_again() -> None:
    members = Membership(range(1, 2))
    members.heard(1, "a", 10.0)
    looked(members, 10.0, 11.0)
    assert members.state(1) is NodeState.SUSPECTED
    assert not members.heard(1, "a", 11.0)
    assert members.state(1) is NodeState.ALIVE
    assert looked(members, 11.0, 11.5) == []


def test_what_the_watcher_itself_was_late_is_no_silence() -> None:
    members = Membership(range(1, 2))
    members.heard(1, "a", 10.0)
    assert looked(members, 10.0, 10.2) == []
    late = 10.2 + LATE_S
    assert members.look(late) == {}
    assert [when for when, _ in looked(members, late, late + 3)][-1] >= late + LOST_AFTER_S - 0.4


def test_a_lost_node_that_speaks_again_and_another_agent_are_news() -> None:
    members = Membership(range(1, 2))
    members.heard(1, "a", 10.0)
    looked(members, 10.0, 12.0)
    assert members.heard(1, "a", 12.0)
    assert not members.heard(1, "a", 12.1)
    assert members.heard(1, "b", 12.2)
    assert (members.agent(1), 1 in members, 2 in members) == ("b", True, False)


def test_a_node_that_was_never_heard_is_not_lost() -> None:
    members = Membership(range(1, 2))
    assert looked(members, 0.0, 10.0) == []
    assert (members.agent(1), members.state(1)) == ("", NodeState.EXPECTED)
