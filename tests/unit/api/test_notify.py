from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import msgspec
import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from holdfast.api.formats import Notification
from holdfast.api.notify import Publisher, notification_password, open_publisher
from holdfast.api.subscribers import LOST, MAX_PEERS, MAX_WAITING_BYTES
from holdfast.api.zmtp import GREETING_PLAIN, BadPeer, Conversation
from holdfast.core.config import NOTIFY_PORT
from holdfast.core.errors import BadConfiguration, PortInUse
from holdfast.sentinel.beside import dropped_items
from support.control_plane import MemoryControl

WAIT_MS = 5000


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    opened = Publisher("127.0.0.1", 0)
    yield opened
    opened.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def subscribe(context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher) -> zmq.Socket[bytes]:
    """A subscriber whose subscription has arrived: the first notification it gets is proof of that."""
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.IPV6, 1)
    subscriber.subscribe(b"vllm_fault")
    subscriber.connect(publisher.address)
    control = MemoryControl().attach()
    for _ in range(WAIT_MS // 10):
        publisher.publish(control.events[-1], control.view())
        if subscriber.poll(10):
            break
    while subscriber.poll(50):
        subscriber.recv_multipart()
    return subscriber


def next_notification(subscriber: zmq.Socket[bytes]) -> Notification:
    assert subscriber.poll(WAIT_MS), "nothing was published"
    topic, body = subscriber.recv_multipart()
    assert topic == b"vllm_fault"
    return msgspec.json.decode(body, type=Notification)


def port_of(publisher: Publisher) -> int:
    return int(publisher.address.rpartition(":")[2])


def test_subscribers_get_the_status_and_the_event(
    context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher
) -> None:
    control = MemoryControl().attach().break_down()
    with subscribe(context, publisher) as subscriber:
        publisher.publish(control.events[1], control.view())
        got = next_notification(subscriber)
    assert (got.schema_version, got.engines[0].status, got.event) == (1, "unhealthy", control.events[1])


def test_the_address_names_the_port_that_was_found(publisher: Publisher) -> None:
    assert publisher.address.startswith("tcp://127.0.0.1:")
    assert port_of(publisher) > 0


def test_a_name_can_stand_for_the_address() -> None:
    publisher = Publisher("localhost", 0)
    publisher.close()
    assert port_of(publisher) > 0


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_works(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    try:
        publisher = Publisher("::1", 0)
    except BadConfiguration:
        pytest.skip("no IPv6 loopback here")
    control = MemoryControl().attach()
    with subscribe(context, publisher) as subscriber:
        publisher.publish(control.events[0], control.view())
        assert next_notification(subscriber).event.sequence == 1
    publisher.close()


def test_a_port_in_use_names_the_port_the_flag_and_the_process(publisher: Publisher) -> None:
    with pytest.raises(PortInUse) as caught:
        Publisher("127.0.0.1", port_of(publisher))
    said = str(caught.value)
    assert str(port_of(publisher)) in said
    assert "--external-fault-notify-port" in said
    assert f"pid {os.getpid()}" in said


def test_a_port_that_another_kind_of_server_holds_is_named_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUse):
        Publisher("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 64 + ".example", "999.1.1.1"])
def test_a_host_that_is_not_ours_is_a_configuration_error(host: str) -> None:
    with pytest.raises(BadConfiguration):
        Publisher(host, 0)


def test_random_bytes_do_not_disturb_it(context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher) -> None:
    control = MemoryControl().attach().break_down()
    greeting = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00NULL" + b"\x00" * 48
    with subscribe(context, publisher) as subscriber:
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b"\xff" * 100_000, greeting + os.urandom(999)):
            with socket.create_connection(("127.0.0.1", port_of(publisher))) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x00" * 8)
                with contextlib.suppress(ConnectionError):  # to be cut off in the middle is fine
                    raw.sendall(junk)
        publisher.publish(control.events[1], control.view())
        assert next_notification(subscriber).event.sequence == 2


def test_a_peer_that_announces_a_large_frame_is_cut_off(publisher: Publisher) -> None:
    greeting = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\x00") + b"\x00" * 32
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
    large = b"\x02" + (1 << 20).to_bytes(8, "big")
    with socket.create_connection(("127.0.0.1", port_of(publisher)), timeout=WAIT_MS / 1000) as raw:
        raw.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready + large)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):  # until it hangs up; a peer that it keeps would run into the timeout
                pass


def test_publishing_without_subscribers_never_waits(publisher: Publisher) -> None:
    control = MemoryControl().attach()
    for _ in range(5000):
        publisher.publish(control.events[0], control.view())


def test_publishing_after_the_end_is_harmless(publisher: Publisher) -> None:
    control = MemoryControl().attach()
    publisher.close()
    publisher.publish(control.events[0], control.view())


def test_closing_frees_the_port() -> None:
    first = Publisher("127.0.0.1", 0)
    first.close()
    Publisher("127.0.0.1", port_of(first)).close()


# ---- the port


def test_a_taken_default_port_gives_way_to_a_free_one(caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(PortInUse):  # held by another process otherwise
            first = Publisher("127.0.0.1", NOTIFY_PORT)
            stack.callback(first.close)
        second = open_publisher("127.0.0.1", None)
        assert second is not None
        stack.callback(second.close)
        assert port_of(second) not in (0, NOTIFY_PORT)
    assert f"port {NOTIFY_PORT}" in caplog.text
    assert f"published at {second.address} instead" in caplog.text


def test_a_port_that_was_asked_for_does_not_give_way(publisher: Publisher) -> None:
    with pytest.raises(PortInUse):
        open_publisher("127.0.0.1", port_of(publisher))


def test_notifications_can_be_switched_off() -> None:
    assert open_publisher("127.0.0.1", -1) is None


def test_an_address_beyond_the_loopback_needs_consent() -> None:
    with pytest.raises(BadConfiguration, match="could read the events"):
        open_publisher("0.0.0.0", 0)
    opened = open_publisher("0.0.0.0", 0, is_open=True)
    assert opened is not None
    opened.close()


def test_beyond_the_loopback_subscribers_need_the_password(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    opened = open_publisher("0.0.0.0", 0, token=b"the token")
    assert opened is not None
    control = MemoryControl().attach()
    password = notification_password(b"the token")
    assert b"the token" not in password
    with contextlib.ExitStack() as stack:
        stack.callback(opened.close)
        subscribers = []
        for attempt in (password, password[:-1], b"the token", None):
            subscriber = stack.enter_context(context.socket(zmq.SUB))
            subscriber.setsockopt(zmq.LINGER, 0)
            if attempt is not None:
                subscriber.plain_username, subscriber.plain_password = b"holdfast", attempt
            subscriber.subscribe(b"")
            subscriber.connect(f"tcp://127.0.0.1:{port_of(opened)}")
            subscribers.append(subscriber)
        for _ in range(WAIT_MS // 10):
            opened.publish(control.events[0], control.view())
            if subscribers[0].poll(10):
                break
        assert next_notification(subscribers[0]).event.sequence == 1
        assert [bool(s.poll(50)) for s in subscribers[1:]] == [False, False, False]


# ---- peers that ask for too much


GREETING = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\x00") + b"\x00" * 32
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"


def raw_subscriber(publisher: Publisher) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", port_of(publisher)), timeout=WAIT_MS / 1000)
    raw.sendall(GREETING + b"\x04" + bytes([len(READY)]) + READY)
    return raw


def hangs_up(raw: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while raw.recv(4096):
            pass
    return True


def test_a_peer_that_never_stops_subscribing_is_cut_off_and_costs_no_memory(
    context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher
) -> None:
    control = MemoryControl().attach().break_down()
    before = psutil.Process().memory_info().rss
    flood = b"".join(b"\x00\x0d\x01" + n.to_bytes(12, "big") for n in range(200_000))
    with subscribe(context, publisher) as subscriber:
        for _ in range(5):  # a million subscriptions
            with raw_subscriber(publisher) as raw, contextlib.suppress(ConnectionError):
                raw.sendall(flood)
                assert hangs_up(raw)
        publisher.publish(control.events[1], control.view())
        assert next_notification(subscriber).event.sequence == 2
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


def test_connections_are_bounded_and_idle_ones_give_way(
    context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher
) -> None:
    control = MemoryControl().attach().break_down()
    files = psutil.Process().num_fds()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(raw_subscriber(publisher)) for _ in range(3 * MAX_PEERS)]
        subscriber = stack.enter_context(subscribe(context, publisher))
        publisher.publish(control.events[1], control.view())
        assert next_notification(subscriber).event.sequence == 2
        assert hangs_up(idle[0])
        assert len(publisher._subscribers._peers) <= MAX_PEERS
        assert psutil.Process().num_fds() - files < len(idle) + MAX_PEERS + 32  # both ends are of this process


def test_a_subscriber_that_reads_nothing_loses_notifications_and_delays_nobody(
    context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher
) -> None:
    control = MemoryControl().attach().break_down()
    with raw_subscriber(publisher) as stuck, subscribe(context, publisher) as subscriber:
        stuck.sendall(b"\x00\x01\x01")
        lost = dropped_items().get(LOST, 0)
        for _ in range(20):
            for _ in range(300):
                publisher.publish(control.events[0], control.view())
            publisher.publish(control.events[1], control.view())
            while next_notification(subscriber).event.sequence != 2:
                pass
        assert dropped_items().get(LOST, 0) > lost
        assert max(len(p.waiting) for p in publisher._subscribers._peers.values()) <= MAX_WAITING_BYTES


def test_a_subscriber_with_heartbeats_stays(context: zmq.Context[zmq.Socket[bytes]], publisher: Publisher) -> None:
    control = MemoryControl().attach()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.LINGER, 0)
    subscriber.setsockopt(zmq.HEARTBEAT_IVL, 50)
    subscriber.setsockopt(zmq.HEARTBEAT_TIMEOUT, 200)
    monitor = subscriber.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    with subscriber, monitor:
        subscriber.subscribe(b"")
        subscriber.connect(publisher.address)
        assert not monitor.poll(600), "the connection was lost"
        publisher.publish(control.events[0], control.view())
        assert next_notification(subscriber).event.sequence == 1


@pytest.mark.parametrize(
    "said", [b"\x04\x05\x05READY", b"\x00\x02\x01v", b"\x08\x00", b"\x05\x00", b"\x02" + b"\xff" * 8]
)
def test_a_peer_that_breaks_the_protocol_is_cut_off(publisher: Publisher, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(publisher)), timeout=WAIT_MS / 1000) as raw:
        raw.sendall(GREETING + said)
        assert hangs_up(raw)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_pass_for_the_password(data: bytes, size: int) -> None:
    conversation = Conversation(b"topic", b"password")
    with contextlib.suppress(BadPeer):
        conversation.take(GREETING_PLAIN, 0.0)
        for start in range(0, len(data), size):
            conversation.take(data[start : start + size], 0.0)
    assert not conversation.is_ready
    assert not conversation._is_admitted


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_break_the_conversation(data: bytes, size: int) -> None:
    conversation = Conversation(b"topic")
    with contextlib.suppress(BadPeer):
        conversation.take(GREETING, 0.0)
        conversation.take(b"\x04" + bytes([len(READY)]) + READY, 0.0)
        for start in range(0, len(data), size):
            conversation.take(data[start : start + size], 0.0)
    assert len(conversation._prefixes) <= len(b"topic") + 1
