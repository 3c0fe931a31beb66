"""Messages between an engine core and the agents of further nodes. The rules of `messages` hold.

What an agent tells is repeated with every heartbeat as state, so that a lost message changes nothing for good.
"""

from __future__ import annotations

import msgspec

from holdfast.core.protocol.decoding import Message, decode_with

# ---- agent -> engine core


class AgentReport(Message, frozen=True, kw_only=True):
    """Base of the reports of an agent. `agent` names one life of it: a new process is another agent."""

    node: int
    agent: str


class AgentHello(AgentReport, frozen=True, tag="agent-hello"):
    """First report: asks what to do. `versions` names the releases of Holdfast and host on the node."""

    versions: str
    ranks: tuple[int, ...]


class AgentAlive(AgentReport, frozen=True, tag="agent-alive"):
    """Heartbeat. `workers` are the process ids of the living workers of the node, by rank."""

    workers: dict[int, int]


class RankExited(AgentReport, frozen=True, tag="rank-exited"):
    """End of the process of a rank; `how` in words, for people."""

    rank: int
    pid: int
    how: str
    exit_code: int | None = None


class RankStarted(AgentReport, frozen=True, tag="rank-started"):
    """A new process has loaded the weights of a rank. `queue` is the host's handle of its replies, encoded."""

    order: str
    rank: int
    pid: int
    queue: bytes
    was_standby: bool = False


class RankNotStarted(AgentReport, frozen=True, tag="rank-not-started"):
    """The new process of a rank did not start."""

    order: str
    rank: int
    why: str


FromAgent = AgentHello | AgentAlive | RankExited | RankStarted | RankNotStarted


# ---- engine core -> agent


class AgentWelcome(Message, frozen=True, tag="agent-welcome"):
    """Answer to a hello. `starts`: the ranks begin with the others, by the host's own start; else on command."""

    instance: str
    starts: bool


class AgentRefused(Message, frozen=True, tag="agent-refused"):
    """Answer to a hello: the agent ends."""

    reason: str


class HeadAlive(Message, frozen=True, tag="head-alive"):
    """Heartbeat of the engine core."""

    instance: str


class StartRank(Message, frozen=True, tag="start-rank"):
    """Start a new process for a rank, and end the old one. `queue` is the host's handle of the calls, encoded."""

    order: str
    rank: int
    queue: bytes


class EndRank(Message, frozen=True, tag="end-rank"):
    """Kill the process of a rank. Void for another process than `pid`."""

    rank: int
    pid: int


class InstanceEnded(Message, frozen=True, tag="instance-ended"):
    """The engine core ends, and nothing replaces it: the agent ends its workers and itself."""


ToAgent = AgentWelcome | AgentRefused | HeadAlive | StartRank | EndRank | InstanceEnded

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def encode_node_message(message: FromAgent | ToAgent) -> bytes:
    """Encode a message between an engine core and an agent."""
    return _encoder.encode(message)


def decode_from_agent(data: bytes) -> FromAgent:
    """Decode a report of an agent. Raises `Undecodable`, and no other error, for foreign bytes."""
    return decode_with(_from_agent, data)


def decode_to_agent(data: bytes) -> ToAgent:
    """Decode a message to an agent. Raises `Undecodable`, and no other error, for foreign bytes."""
    return decode_with(_to_agent, data)
