"""Garbage, truncated, huge, repeated and foreign messages to the sentinels of engine core, worker and API server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.config import HoldfastConfig, runtime_settings
from holdfast.core.faults.faults import Fault, FaultClass, Phase
from holdfast.core.faults.injection import InjectionSpec
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.decoding import MAX_MESSAGE_BYTES, Undecodable
from holdfast.core.protocol.events import InstanceView
from holdfast.sentinel import refused
from holdfast.sentinel.beside import dropped_items
from holdfast.sentinel.engine import EngineCoreSentinel
from holdfast.sentinel.front_end_link import FrontEndLink
from holdfast.sentinel.refused import COUNTED_AS, MAX_REASON, RefusedMessages
from holdfast.sentinel.worker import WorkerSentinel
from holdfast.wire import Delivery

FEW = settings(max_examples=15, deadline=None)

FAULT = Fault(fault_class=FaultClass.TRANSIENT, error_type="E", message="boom", engine_id=0, rank=0)
SPEC = InjectionSpec(phase=Phase.FORWARD)
TO_WORKER = [m.ArmWorkerFault(command_id="a", spec=SPEC), m.BreakCollectives(epoch=0)]
TO_ENGINE = [
    m.RecoverEngine(command_id="r", epoch=0, rendezvous=m.Rendezvous("127.0.0.1", 1, 1, secret="s"), replace=(0,)),
    m.PauseEngine(command_id="p", epoch=0),
    m.ArmFault(command_id="f", spec=SPEC),
    m.CoordinatorReplaced(),
]
FROM_WORKER = [
    m.WorkerAttached(rank=0, pid=1, hooks=("step",)),
    m.RankFaulted(rank=0, epoch=0, fault=FAULT, pid=1),
    m.CollectivesBroken(rank=0, epoch=0, connections=1, pid=1),
    m.RankStuck(rank=0, collective="all_reduce", pid=1),
]
TO_LINK = [
    lm.Present(view=InstanceView(engines=(), settings=runtime_settings(HoldfastConfig()))),
    lm.Settled(submission="s", error=None),
]


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def bytes_like(messages: list[Any], encode: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Noise, and messages that were cut, changed in a byte, lengthened or written by another version."""
    known = [encode(message) for message in messages]
    other = [msgspec.msgpack.encode({"type": t, "version": 2}) for t in ("retry-engine", "rank-faulted", "x" * 9999)]

    def changed(data: bytes) -> st.SearchStrategy[bytes]:
        at = st.integers(0, len(data) - 1)
        return st.one_of(
            at.map(lambda i: data[:i]),
            st.tuples(at, st.integers(1, 255)).map(lambda c: flipped(data, *c)),
            st.binary(min_size=1, max_size=20).map(lambda tail: data + tail),
        )

    too_long = [bytes(MAX_MESSAGE_BYTES + 1), b"\x91" * 5000, b"\xdf" + b"\xff" * 4, b"\xdd" + b"\xff" * 4]
    return st.one_of(st.binary(max_size=80), st.sampled_from(known).flatmap(changed), st.sampled_from(other + too_long))


class Ends:
    """Stands for a station and its ends; nothing is sent anywhere."""

    address = "nowhere"

    def bind(self, address: str) -> Ends:
        return Ends()

    def connect(self, address: str, identity: bytes) -> Ends:
        return Ends()

    def send(self, *frames: bytes) -> bool:
        return True

    def wake(self) -> None: ...


class Worker:
    """Host that notes what is asked."""

    def __init__(self) -> None:
        self.armed: list[InjectionSpec] = []
        self.broken: list[int] = []

    def arm(self, spec: InjectionSpec) -> None:
        self.armed.append(spec)

    def break_collectives(self, epoch: int) -> int | None:
        self.broken.append(epoch)
        return 0


def refusals() -> int:
    return dropped_items().get(COUNTED_AS, 0)


def an_engine() -> EngineCoreSentinel:
    sentinel = EngineCoreSentinel(0, HoldfastConfig(), Ends(), "client", "engine")  # type: ignore[arg-type]
    sentinel._deliver(Delivery(sentinel._ranks._near, b"worker-0", m.encode(FROM_WORKER[0])))
    return sentinel


@FEW
@given(st.lists(bytes_like(TO_WORKER, m.encode), max_size=5))
def test_a_worker_survives_every_message_and_follows_what_is_whole(messages: list[bytes]) -> None:
    host = Worker()
    sentinel = WorkerSentinel(host, 0, Ends(), "engine")  # type: ignore[arg-type]
    before, wholes = refusals(), 0
    for data in messages:
        sentinel._deliver(Delivery(sentinel._spoke, b"", data))
        wholes += _is_whole(m.decode_to_worker, data)
    assert len(host.armed) + len(host.broken) == wholes
    assert refusals() - before == len(messages) - wholes


@FEW
@given(st.lists(bytes_like(TO_ENGINE, m.encode), max_size=5), st.lists(bytes_like(FROM_WORKER, m.encode), max_size=5))
def test_an_engine_core_survives_every_message(commands: list[bytes], reports: list[bytes]) -> None:
    sentinel, before = an_engine(), refusals()
    for data in commands:
        sentinel._deliver(Delivery(sentinel._client, b"", data))
    for data in reports:
        sentinel._deliver(Delivery(sentinel._ranks._near, b"worker-0", data))
    wholes = sum(_is_whole(m.decode_to_engine, data) for data in commands)
    wholes += sum(_is_whole(m.decode_from_worker, data) and m.decode_from_worker(data).rank == 0 for data in reports)
    assert refusals() - before == len(commands) + len(reports) - wholes


@FEW
@given(st.lists(bytes_like(TO_LINK, lm.encode), max_size=5))
def test_an_api_servers_link_survives_every_message(messages: list[bytes]) -> None:
    link = FrontEndLink(0, HoldfastConfig(), Ends(), "client")  # type: ignore[arg-type]
    before = refusals()
    for data in messages:
        link._deliver(Delivery(link._owner, b"", data))
    assert refusals() - before == sum(not _is_whole(lm.decode_to_link, data) for data in messages)


def _is_whole(decode: Callable[[bytes], object], data: bytes) -> bool:
    try:
        decode(data)
    except Undecodable:
        return False
    return True


@pytest.mark.parametrize("report", FROM_WORKER, ids=lambda report: type(report).__name__)
@pytest.mark.parametrize("peer", [b"worker-1", b"engine-0", b"stranger", b""])
def test_a_report_of_a_rank_by_somebody_else_changes_nothing(report: m.FromWorker, peer: bytes) -> None:
    sentinel, before = an_engine(), refusals()
    replayed = msgspec.structs.replace(report, pid=7)
    sentinel._deliver(Delivery(sentinel._ranks._near, peer, m.encode(replayed)))
    assert sentinel._machine.registry.pids() == {0: 1}
    assert sentinel._machine._ranks.containment.fault is None
    assert refusals() == before + 1


def test_a_flood_is_counted_and_logged_once_in_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before, messages = 1000.0, refusals(), RefusedMessages("a sentinel")
    monkeypatch.setattr(refused.time, "monotonic", lambda: now)
    with caplog.at_level(logging.WARNING, "holdfast"):
        for _ in range(1000):
            messages.note("garbage")
        now += refused.LOG_EVERY_S
        messages.note("garbage")
    assert [record.getMessage() for record in caplog.records] == [
        "a sentinel: 1 message(s) dropped, the last one because: garbage",
        "a sentinel: 1000 message(s) dropped, the last one because: garbage",
    ]
    assert refusals() - before == 1001


def test_a_message_writes_no_lines_and_no_long_ones_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    link = FrontEndLink(0, HoldfastConfig(), Ends(), "client")  # type: ignore[arg-type]
    forged = msgspec.msgpack.encode({"type": "\nERROR all is lost\x1b[2J" + "x" * 100_000})
    with caplog.at_level(logging.WARNING, "holdfast"):
        link._deliver(Delivery(link._owner, b"", forged))
    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < MAX_REASON + 100
