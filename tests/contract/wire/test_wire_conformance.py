"""One suite for every wire: what the sentinels may rely on, over ZeroMQ with and without keys, and in memory."""

import os
import threading
import time

import pytest
import zmq

from holdfast.core.errors import PortInUse, WorldError
from holdfast.wire import MemoryNetwork, ZmqStation
from holdfast.wire.base import MAX_FRAME_BYTES
from holdfast.wire.curve import derive_keys

LONG_S = 10.0  # a bound that a passing test never reaches
KEYS = derive_keys(b"the nodes of a test share this")


class Wire:
    """Stations of one kind, all closed at the end; `address` is where hubs are bound."""

    def __init__(self, new_station, address):
        self._new_station = new_station
        self._stations = []
        self.address = address

    def station(self):
        station = self._new_station()
        self._stations.append(station)
        return station

    def hub(self, address=None):
        station = self.station()
        return station, station.bind(address or self.address)

    def spoke(self, hub, identity=b"peer"):
        station = self.station()
        return station, station.connect(hub.address, identity)

    def close(self):
        for station in self._stations:
            station.close()


def wires(kind, tmp_path):
    match kind:
        case "memory":
            return Wire(MemoryNetwork().station, "memory://hub")
        case "ipc":
            return Wire(ZmqStation, f"ipc://{tmp_path}/hub")
        case "tcp":
            return Wire(ZmqStation, "tcp://127.0.0.1:0")
        case "curve":
            return Wire(lambda: ZmqStation(KEYS), "tcp://127.0.0.1:0")


@pytest.fixture(params=["memory", "ipc", "tcp", "curve"])
def wire(request, tmp_path):
    wire = wires(request.param, tmp_path)
    yield wire
    wire.close()


@pytest.fixture(params=["ipc", "tcp"])
def zmq_wire(request, tmp_path):
    wire = wires(request.param, tmp_path)
    yield wire
    wire.close()


def greeted(wire, identity=b"peer"):
    """A hub and a spoke that have spoken."""
    hub_station, hub = wire.hub()
    spoke_station, spoke = wire.spoke(hub, identity)
    assert spoke.send(b"hello")
    assert hub_station.receive(LONG_S).data == b"hello"
    return hub_station, hub, spoke_station, spoke


# ---- delivery


def test_a_message_arrives_with_the_name_of_its_sender(wire):
    station, hub = wire.hub()
    _, spoke = wire.spoke(hub, b"engine-3")
    assert spoke.send(b"one")
    delivery = station.receive(LONG_S)
    assert (delivery.endpoint, delivery.peer, delivery.data) == (hub, b"engine-3", b"one")


def test_an_answer_arrives_at_the_peer_it_was_sent_to_and_nowhere_else(wire):
    hub_station, hub = wire.hub()
    peers = {name: wire.spoke(hub, name) for name in (b"a", b"b")}
    for name, (_, spoke) in peers.items():
        spoke.send(name)
        assert hub_station.receive(LONG_S).peer == name
    assert hub.send(b"b", b"for b")
    delivery = peers[b"b"][0].receive(LONG_S)
    assert (delivery.endpoint, delivery.peer, delivery.data) == (peers[b"b"][1], b"", b"for b")
    assert peers[b"a"][0].receive(0) is None


def test_messages_of_one_peer_arrive_in_order(wire):
    hub_station, hub, spoke_station, spoke = greeted(wire)
    sent = [b"%d" % i for i in range(200)]
    assert all(spoke.send(data) for data in sent)
    assert [hub_station.receive(LONG_S).data for _ in sent] == sent
    assert all(hub.send(b"peer", data) for data in sent)
    assert [spoke_station.receive(LONG_S).data for _ in sent] == sent


def test_one_station_holds_hubs_and_spokes_at_once(wire, tmp_path):
    far_station, far = wire.hub()
    other = wire.address.replace("/hub", "/other")
    middle, near = wire.hub(other)
    up = middle.connect(far.address, b"middle")
    _, down = wire.spoke(near, b"down")
    down.send(b"up, please")
    assert middle.receive(LONG_S).endpoint is near
    up.send(b"passed on")
    assert far_station.receive(LONG_S).peer == b"middle"
    far.send(b"middle", b"thanks")
    assert middle.receive(LONG_S).endpoint is up


def test_a_busy_endpoint_does_not_starve_a_quiet_one(wire):
    busy_station, busy = wire.hub()
    quiet = busy_station.bind(wire.address.replace("/hub", "/quiet"))
    _, loud = wire.spoke(busy, b"loud")
    _, soft = wire.spoke(quiet, b"soft")
    soft.send(b"hello")
    assert busy_station.receive(LONG_S).peer == b"soft"
    for _ in range(100):
        loud.send(b"noise")
    soft.send(b"now me")
    for _ in range(20_000):  # the noise never ends: a wire that serves it first never gets to the other
        loud.send(b"noise")
        if busy_station.receive(LONG_S).peer == b"soft":
            break
    else:
        pytest.fail("starved")


def test_an_empty_message_is_a_message(wire):
    hub_station, _, _, spoke = greeted(wire)
    assert spoke.send(b"")
    assert hub_station.receive(LONG_S).data == b""


# ---- what is refused


def test_a_peer_that_never_spoke_is_refused(wire):
    _, hub, _, _ = greeted(wire)
    assert not hub.send(b"nobody", b"x")


def test_a_spoke_that_connects_again_under_its_name_takes_over(wire):
    hub_station, hub, old_station, _ = greeted(wire)
    old_station.close()
    new_station, new = wire.spoke(hub, b"peer")
    new.send(b"again")
    assert hub_station.receive(LONG_S).data == b"again"
    assert hub.send(b"peer", b"welcome back")
    assert new_station.receive(LONG_S).data == b"welcome back"


def test_a_second_spoke_under_the_same_name_takes_over_from_a_living_one(wire):
    hub_station, hub, old_station, _ = greeted(wire)
    new_station, new = wire.spoke(hub, b"peer")
    new.send(b"it is me now")
    assert hub_station.receive(LONG_S).data == b"it is me now"
    assert hub.send(b"peer", b"fine")
    assert new_station.receive(LONG_S).data == b"fine"
    assert old_station.receive(0) is None


@pytest.mark.parametrize("end", ["spoke", "hub"])
def test_a_queue_is_bounded_and_a_full_one_refuses(wire, end):
    _, hub, _, spoke = greeted(wire)
    data = bytes(4096)
    send = (lambda: spoke.send(data)) if end == "spoke" else (lambda: hub.send(b"peer", data))
    taken = 0
    while taken < 20_000 and send():
        taken += 1
    assert 900 <= taken < 20_000


def test_an_oversized_message_is_refused_and_the_link_lives_on(wire):
    hub_station, hub, spoke_station, spoke = greeted(wire)
    assert not spoke.send(bytes(MAX_FRAME_BYTES + 1))
    assert not hub.send(b"peer", bytes(MAX_FRAME_BYTES + 1))
    assert spoke.send(bytes(MAX_FRAME_BYTES))
    assert len(hub_station.receive(LONG_S).data) == MAX_FRAME_BYTES
    assert hub.send(b"peer", b"ok")
    assert spoke_station.receive(LONG_S).data == b"ok"


def test_an_address_in_use_is_refused_and_its_owner_keeps_it(wire):
    hub_station, hub, _, spoke = greeted(wire)
    with pytest.raises(PortInUse, match=hub.address):
        wire.hub(hub.address)
    assert spoke.send(b"still here?")
    assert hub_station.receive(LONG_S).data == b"still here?"


# ---- waiting


def test_nothing_to_receive_is_none_after_the_timeout(wire):
    station, _ = wire.hub()
    assert station.receive(0) is None
    assert station.receive(-1.0) is None
    assert station.receive(0.01) is None


def test_a_wait_is_not_shorter_than_its_timeout(wire):
    station, _ = wire.hub()
    began = time.monotonic()
    station.receive(0.0029)
    assert time.monotonic() - began >= 0.0025


def test_a_wake_from_another_thread_ends_a_wait_at_once(wire):
    station, _ = wire.hub()
    waker = threading.Timer(0.02, station.wake)
    waker.start()
    began = time.monotonic()
    assert station.receive(LONG_S) is None
    assert time.monotonic() - began < LONG_S / 2
    waker.join()


def test_a_wake_before_a_wait_is_not_lost_and_counts_once(wire):
    station, _ = wire.hub()
    for _ in range(3):
        station.wake()
    began = time.monotonic()
    assert station.receive(LONG_S) is None
    assert time.monotonic() - began < LONG_S / 2
    assert station.receive(0) is None


def test_more_wakes_than_anybody_reads_never_wait(wire):
    station, _ = wire.hub()
    for _ in range(70_000):  # more than a pipe holds
        station.wake()
    assert station.receive(LONG_S) is None


def test_a_message_is_received_although_there_was_a_wake(wire):
    hub_station, _, _, spoke = greeted(wire)
    hub_station.wake()
    spoke.send(b"x")
    # Over sockets the wake may be faster than the message.
    delivery = hub_station.receive(LONG_S) or hub_station.receive(LONG_S)
    assert delivery.data == b"x"


# ---- closing


def test_a_closed_address_is_free_again(wire):
    station, hub = wire.hub()
    address = hub.address
    station.close()
    again_station, again = wire.hub(address)
    _, spoke = wire.spoke(again)
    spoke.send(b"x")
    assert again_station.receive(LONG_S).data == b"x"


def test_closing_twice_and_waking_what_is_closed_do_nothing(wire):
    station, hub = wire.hub()
    address = hub.address
    station.close()
    _, successor = wire.hub(address)
    station.close()
    station.wake()
    with pytest.raises(PortInUse):
        wire.hub(successor.address)


def test_a_wake_after_the_end_writes_into_nobody_s_file(zmq_wire):
    station = zmq_wire.station()
    station.close()
    ends = os.pipe2(os.O_NONBLOCK)  # takes the numbers that have just become free
    try:
        station.wake()
        with pytest.raises(BlockingIOError):
            os.read(ends[0], 1)
    finally:
        for end in ends:
            os.close(end)


def test_closing_leaks_no_files_and_no_threads(wire):
    def one_round():
        for station in greeted(wire)[::2]:
            station.close()

    def open_things():
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    one_round()
    before = open_things()
    for _ in range(50):
        one_round()
    assert open_things() == before


# ---- strangers on the socket


def stranger(context, hub, identity=b"stranger"):
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.connect(hub.address)
    return socket


def test_a_message_of_many_frames_arrives_as_empty_data(zmq_wire):
    station, hub = zmq_wire.hub()
    with zmq.Context() as context, stranger(context, hub) as socket:
        socket.send_multipart([b"a", b"b", b"c"])
        delivery = station.receive(LONG_S)
        assert (delivery.peer, delivery.data) == (b"stranger", b"")
        socket.send(b"one frame")
        assert station.receive(LONG_S).data == b"one frame"


def test_an_answer_of_many_frames_arrives_as_empty_data(zmq_wire, tmp_path):
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind(zmq_wire.address.replace("/hub", "/router"))
        station = zmq_wire.station()
        spoke = station.connect(router.getsockopt_string(zmq.LAST_ENDPOINT), b"me")
        spoke.send(b"hello")
        peer, _ = router.recv_multipart()
        router.send_multipart([peer, b"a", b"b"])
        assert station.receive(LONG_S).data == b""


def test_a_stranger_s_oversized_frame_is_dropped_and_everybody_lives_on(zmq_wire):
    station, hub, _, spoke = greeted(zmq_wire)
    with zmq.Context() as context, stranger(context, hub) as socket:
        socket.send(bytes(MAX_FRAME_BYTES + 1))
        assert spoke.send(b"good neighbour")
        assert station.receive(LONG_S).data == b"good neighbour"
        assert b"sorry" in heard_again(socket, station)


def heard_again(socket, station, tries=50):
    """What arrives once the link is back. Until ZeroMQ has noticed that it broke, messages go down with it."""
    heard = []
    for _ in range(tries):
        socket.send(b"sorry")
        if (delivery := station.receive(0.2)) is not None:
            heard.append(delivery.data)
            assert len(delivery.data) <= MAX_FRAME_BYTES
            if delivery.data == b"sorry":
                break
    return heard


def test_an_address_that_cannot_be_is_the_world_s_fault_and_no_port_in_use(zmq_wire):
    with pytest.raises(WorldError) as caught:
        zmq_wire.hub("ipc:///no/such/folder/hub")
    assert not isinstance(caught.value, PortInUse)


def test_a_leftover_socket_file_of_a_dead_process_is_taken_over(tmp_path):
    import socket

    path = tmp_path / "hub"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    station = ZmqStation()
    assert station.bind(f"ipc://{path}").address == f"ipc://{path}"
    station.close()


# ---- keys


def heard_from(station, spoke, within_s=0.4):
    """What a peer that keeps sending is heard to say."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        spoke.send(b"let me in")
        if (delivery := station.receive(0.05)) is not None:
            return delivery.data
    return None


@pytest.mark.parametrize(
    "keys", [None, derive_keys(b"another secret of this length")], ids=["without keys", "with keys of another secret"]
)
def test_a_peer_without_the_secret_is_not_heard_and_hears_nothing(tmp_path, keys):
    wire, stranger_station = wires("curve", tmp_path), ZmqStation(keys)
    try:
        hub_station, hub, _, spoke = greeted(wire)
        unknown = stranger_station.connect(hub.address, b"worker-1")
        assert heard_from(hub_station, unknown) is None
        assert not hub.send(b"worker-1", b"a secret of ours")
        assert stranger_station.receive(0) is None
        assert heard_from(hub_station, spoke) == b"let me in"
    finally:
        stranger_station.close()
        wire.close()


def test_a_peer_with_the_secret_does_not_talk_to_a_hub_without(tmp_path):
    wire, impostor = wires("curve", tmp_path), ZmqStation()
    try:
        hub = impostor.bind("tcp://127.0.0.1:0")
        station = wire.station()
        spoke = station.connect(hub.address, b"peer")
        assert heard_from(impostor, spoke) is None
    finally:
        impostor.close()
        wire.close()


def test_what_is_said_with_keys_cannot_be_read_on_the_way(tmp_path):
    import socket

    wire = wires("curve", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hub_station, hub = wire.hub()
        station = wire.station()
        spoke = station.connect(f"tcp://127.0.0.1:{listening.getsockname()[1]}", b"peer")
        spoke.send(b"in the clear?")
        read = bytearray()
        near, _ = listening.accept()
        with near, socket.create_connection(("127.0.0.1", int(hub.address.rsplit(":", 1)[1]))) as far:
            near.setblocking(False)
            far.setblocking(False)
            deadline, delivery = time.monotonic() + LONG_S, None
            while delivery is None and time.monotonic() < deadline:
                for source, target in ((near, far), (far, near)):
                    try:
                        data = source.recv(1 << 16)
                    except BlockingIOError:
                        continue
                    read += data
                    target.sendall(data)
                delivery = hub_station.receive(0.001)
        assert delivery is not None
        assert delivery.data == b"in the clear?"
        assert b"in the clear?" not in read
        assert KEYS.hub_public not in read
        wire.close()


def test_keys_follow_from_the_secret_and_show_no_secret():
    assert derive_keys(b"the nodes of a test share this") == KEYS
    assert derive_keys(b"the nodes of a test share that") != KEYS
    assert KEYS.hub_secret.decode() not in repr(KEYS)
    with pytest.raises(ValueError, match="shorter than 16"):
        derive_keys(b"too short")
