"""Membership of further nodes: who is alive, suspected, or lost. Time is an argument."""

from __future__ import annotations

import enum
from dataclasses import dataclass

HEARTBEAT_S = 0.25
SUSPECTED_AFTER_S = 0.75
LOST_AFTER_S = 1.5  # a shorter bound took living nodes for lost: a dying process stalls a whole machine for a second
LOOK_S = 0.1


class NodeState(enum.StrEnum):
    """State of a node, by its agent."""

    EXPECTED = "expected"  # its agent was never heard
    ALIVE = "alive"
    SUSPECTED = "suspected"
    LOST = "lost"


@dataclass
class _Member:
    agent: str = ""
    state: NodeState = NodeState.EXPECTED
    heard_at: float = 0.0


class Membership:
    """The agents of further nodes, by the number of the node.

    A watcher that was late itself has not listened meanwhile: what it was late is no silence of an agent.
    """

    def __init__(self, nodes: range) -> None:
        self._members = {node: _Member() for node in nodes}
        self._looked_at: float | None = None

    def agent(self, node: int) -> str:
        """Return the agent of a node; empty when none was heard."""
        return self._members[node].agent

    def state(self, node: int) -> NodeState:
        """Return the state of a node."""
        return self._members[node].state

    def __contains__(self, node: int) -> bool:
        return node in self._members

    def states(self) -> dict[int, NodeState]:
        """Return the state of every node."""
        return {node: member.state for node, member in self._members.items()}

    def heard(self, node: int, agent: str, now: float) -> bool:
        """Note a message of an agent; return True when the node was lost, or has another agent than before."""
        member = self._members[node]
        is_news = member.state is NodeState.LOST or member.agent != agent
        member.agent, member.state, member.heard_at = agent, NodeState.ALIVE, now
        return is_news

    def look(self, now: float) -> dict[int, NodeState]:
        """Judge every silence; return the nodes with a new state."""
        late_s = 0.0 if self._looked_at is None else max(0.0, now - self._looked_at - LOOK_S)
        self._looked_at = now
        changed = {}
        for node, member in self._members.items():
            member.heard_at = min(now, member.heard_at + late_s)
            if (state := _judge(member, now)) is not member.state:
                changed[node] = member.state = state
        return changed


def _judge(member: _Member, now: float) -> NodeState:
    if member.state in (NodeState.EXPECTED, NodeState.LOST):
        return member.state
    silent_s = now - member.heard_at
    if silent_s >= LOST_AFTER_S:
        return NodeState.LOST
    return NodeState.SUSPECTED if silent_s >= SUSPECTED_AFTER_S else NodeState.ALIVE
