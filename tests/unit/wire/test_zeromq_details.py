"""What only the sockets can get wrong: options that bound memory and time."""

import pytest
import zmq

from holdfast.wire import ZmqStation
from holdfast.wire.base import MAX_FRAME_BYTES, MAX_QUEUED_MESSAGES


@pytest.fixture
def sockets():
    station = ZmqStation()
    hub = station.bind("tcp://127.0.0.1:0")
    spoke = station.connect(hub.address, b"me")
    yield hub.socket, spoke.socket
    station.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
        (zmq.SNDHWM, MAX_QUEUED_MESSAGES),
        (zmq.RCVHWM, MAX_QUEUED_MESSAGES),
        (zmq.LINGER, 1000),
    ],
)
def test_every_socket_is_bounded_in_size_queue_and_lingering(sockets, option, value):
    assert [socket.getsockopt(option) for socket in sockets] == [value, value]


def test_a_hub_on_port_zero_says_which_port_it_got():
    station = ZmqStation()
    port = int(station.bind("tcp://127.0.0.1:0").address.removeprefix("tcp://127.0.0.1:"))
    assert port > 0
    station.close()
