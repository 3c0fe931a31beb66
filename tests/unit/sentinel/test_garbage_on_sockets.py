"""Garbage on the real sockets of a running ClientSentinel: nothing ends, and legitimate reports go on."""

import contextlib
import resource
import socket

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.core.config import HoldfastConfig
from holdfast.core.protocol import link_messages as lm
from holdfast.core.protocol import messages as m
from holdfast.core.protocol.commands import Configure
from holdfast.core.states import EngineState
from holdfast.sentinel import ClientSentinel
from holdfast.wire import ZmqStation

WAIT_S = 10.0
GREETING = b"\xff" + bytes(8) + b"\x7f\x03"  # of the protocol of ZeroMQ; what follows is none
MOST_GROWTH_KB = 64 * 1024
SEEN = [
    m.encode(m.EngineAttached(engine_id=0, pid=1, hooks=(), workers=())),
    lm.encode(lm.LinkReported(link_id=0, pid=1, hooks=())),
]
FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=64),
        st.sampled_from(SEEN).flatmap(
            lambda data: st.integers(0, len(data) - 1).map(lambda at: data[:at] + bytes([data[at] ^ 0x41]) + data[at:])
        ),
    ),
    max_size=4,
)
IDENTITIES = st.one_of(
    st.sampled_from([b"engine-1", b"engine-99", b"link-0", b"link-9", b"worker-0"]),
    st.binary(min_size=1, max_size=20).filter(lambda name: name[0] != 0 and name != b"engine-0"),
)


class Owner:
    """Host of the owner, which is asked for nothing but whether engine cores can be replaced."""

    def unrecoverable_reason(self):
        return ""


@pytest.fixture(scope="module", params=["ipc", "tcp"])
def served(request, tmp_path_factory):
    """A running sentinel with one engine core and one link, and the address."""
    address = f"ipc://{tmp_path_factory.mktemp('s')}/client" if request.param == "ipc" else "tcp://127.0.0.1:0"
    sentinel = ClientSentinel([(0,)], HoldfastConfig(), Owner(), ZmqStation(), address)
    sentinel.expect_links(1)
    sentinel.start()
    station = ZmqStation()
    engine = station.connect(sentinel._hub.address, b"engine-0")
    engine.send(m.encode(m.EngineAttached(engine_id=0, pid=1, hooks=(), workers=())))
    sentinel.await_attached(WAIT_S)
    yield sentinel
    station.close()
    sentinel.close()


def answers(sentinel, number):
    """Whether a command is carried out."""
    sentinel.submit(Configure(command_id=f"c{number}", settings={"max_retries": number % 9})).result(WAIT_S)
    return sentinel.view().engine(0).state is EngineState.HEALTHY


@pytest.mark.hypothesis
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(identity=IDENTITIES, messages=st.lists(FRAMES.filter(bool), max_size=6), number=st.integers(0, 1000))
def test_frames_of_anybody_change_nothing_and_end_nothing(served, identity, messages, number):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 200)
        stranger.setsockopt(zmq.IDENTITY, identity)
        stranger.connect(served._hub.address)
        for frames in messages:
            stranger.send_multipart(frames)
        assert answers(served, number)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH_KB


@pytest.mark.hypothesis
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=200), st.binary(max_size=40).map(lambda tail: b"\xff" + bytes(8) + b"\x7f\x03" + tail)
    )
)
def test_bytes_that_are_no_protocol_change_nothing_and_end_nothing(served, data):
    kind, _, where = served._hub.address.partition("://")
    with socket.socket(socket.AF_UNIX if kind == "ipc" else socket.AF_INET) as raw, contextlib.suppress(OSError):
        raw.settimeout(1.0)
        raw.connect(where if kind == "ipc" else (where.rpartition(":")[0], int(where.rpartition(":")[2])))
        raw.sendall(data)
    assert answers(served, len(data))
