"""The wire over ZeroMQ: ROUTER and DEALER, bounded in message size and queue length.

Over TCP the two ends notice a silent link, and with keys every message is encrypted and both ends are authenticated.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket as sockets
import threading
from typing import TypeVar

import zmq

from holdfast.core.errors import PortInUse, WorldError
from holdfast.wire.base import MAX_FRAME_BYTES, MAX_QUEUED_MESSAGES, Delivery
from holdfast.wire.curve import CurveKeys

_LINGER_MS = 1000
_ENCRYPTION_BYTES = 64  # more than CURVE adds to a message
# Over TCP. A link whose packets vanish is dropped, and made again once packets arrive: the waits of the system between
# two attempts would grow to seconds.
_HEARTBEAT_MS, _SILENCE_MS = 500, 1500
_CONNECT_MS, _RECONNECT_MS, _LONGEST_RECONNECT_MS = 500, 50, 200

E = TypeVar("E", "ZmqHub", "ZmqSpoke")


def is_tcp(address: str) -> bool:
    """Return whether an address may be reached from another machine."""
    return address.startswith("tcp://")


class _Socket:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str) -> None:
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)
        if is_tcp(address):
            self.socket.setsockopt(zmq.IPV6, "[" in address)
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
            self.socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MS)
            self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
            self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)

    def _send(self, frames: list[bytes]) -> bool:
        if len(frames[-1]) > MAX_FRAME_BYTES:  # the other end would drop the connection
            return False
        try:
            self.socket.send_multipart(frames, flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True


class ZmqHub(_Socket):
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, keys: CurveKeys | None) -> None:
        super().__init__(context, zmq.ROUTER, address)
        if keys is not None:
            self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES + _ENCRYPTION_BYTES)
            self.socket.setsockopt(zmq.CURVE_SERVER, 1)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.hub_secret)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            _refuse_taken_path(address)
            self.socket.bind(address)
        except zmq.ZMQError as error:
            self.socket.close(0)
            kind = PortInUse if error.errno == errno.EADDRINUSE else WorldError
            raise kind(f"cannot bind {address}: {error.strerror}") from None
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, peer: bytes, data: bytes) -> bool:
        return self._send([peer, data])


def _refuse_taken_path(address: str) -> None:
    """Refuse an ipc path with a listener, which ZeroMQ would take over silently; ignore leftovers."""
    scheme, _, path = address.partition("://")
    if scheme != "ipc":
        return
    with sockets.socket(sockets.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)
        probe.connect(path)
        raise zmq.ZMQError(errno.EADDRINUSE)


class ZmqSpoke(_Socket):
    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes, keys: CurveKeys | None
    ) -> None:
        super().__init__(context, zmq.DEALER, address)
        if keys is not None:
            self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES + _ENCRYPTION_BYTES)
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, keys.hub_public)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.peer_public)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, keys.peer_secret)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(address)

    def send(self, data: bytes) -> bool:
        return self._send([data])


class ZmqStation:
    """A station with a separate context, which shares nothing with the host's sockets.

    Args:
        keys: for endpoints over TCP, which are not encrypted without keys.
    """

    def __init__(self, keys: CurveKeys | None = None) -> None:
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._endpoints: dict[zmq.Socket[bytes], ZmqHub | ZmqSpoke] = {}
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._wake_r, zmq.POLLIN)
        self._open = True
        self._closing = threading.Lock()  # the number of a closed pipe may be reused for another file

    def bind(self, address: str) -> ZmqHub:
        return self._keep(ZmqHub(self._context, address, self._keys_for(address)))

    def connect(self, address: str, identity: bytes) -> ZmqSpoke:
        return self._keep(ZmqSpoke(self._context, address, identity, self._keys_for(address)))

    def receive(self, timeout_s: float) -> Delivery | None:
        ready = dict(self._poller.poll(max(0, math.ceil(timeout_s * 1000))))
        if self._wake_r in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)
        for socket, endpoint in self._endpoints.items():
            if socket in ready:
                # Last in line from now on: a busy endpoint must not starve a quiet one.
                self._endpoints[socket] = self._endpoints.pop(socket)
                return self._read(socket, endpoint)
        return None

    def wake(self) -> None:
        with self._closing, contextlib.suppress(BlockingIOError):  # a full pipe wakes already
            if self._open:
                os.write(self._wake_w, b"w")

    def close(self) -> None:
        with self._closing:
            was_open, self._open = self._open, False
        if not was_open:
            return
        for socket in self._endpoints:
            socket.close()
        self._endpoints.clear()
        self._context.term()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _keys_for(self, address: str) -> CurveKeys | None:
        return self._keys if is_tcp(address) else None

    def _keep(self, endpoint: E) -> E:
        self._endpoints[endpoint.socket] = endpoint
        self._poller.register(endpoint.socket, zmq.POLLIN)
        return endpoint

    def _read(self, socket: zmq.Socket[bytes], endpoint: ZmqHub | ZmqSpoke) -> Delivery | None:
        try:
            frames = socket.recv_multipart(flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            return None
        peer, data = (frames[0], frames[1:]) if isinstance(endpoint, ZmqHub) else (b"", frames)
        # Messages have one frame; anything else is delivered as an empty message, which the decoder rejects.
        is_message = len(data) == 1 and len(data[0]) <= MAX_FRAME_BYTES
        return Delivery(endpoint, peer, data[0] if is_message else b"")
