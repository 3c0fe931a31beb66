"""The wire over ZeroMQ: ROUTER and DEALER, bounded in message size and queue length."""

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

_LINGER_MS = 1000

E = TypeVar("E", "ZmqHub", "ZmqSpoke")


class _Socket:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self.socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_MESSAGES)

    def _send(self, frames: list[bytes]) -> bool:
        if len(frames[-1]) > MAX_FRAME_BYTES:  # the other end would drop the connection
            return False
        try:
            self.socket.send_multipart(frames, flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            return False
        return True


class ZmqHub(_Socket):
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        super().__init__(context, zmq.ROUTER)
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
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes) -> None:
        super().__init__(context, zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.connect(address)

    def send(self, data: bytes) -> bool:
        return self._send([data])


class ZmqStation:
    """A station with a separate context, which shares nothing with the host's sockets."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._endpoints: dict[zmq.Socket[bytes], ZmqHub | ZmqSpoke] = {}
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._wake_r, zmq.POLLIN)
        self._open = True
        self._closing = threading.Lock()  # the number of a closed pipe may be reused for another file

    def bind(self, address: str) -> ZmqHub:
        return self._keep(ZmqHub(self._context, address))

    def connect(self, address: str, identity: bytes) -> ZmqSpoke:
        return self._keep(ZmqSpoke(self._context, address, identity))

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
        return Delivery(endpoint, peer, data[0] if len(data) == 1 else b"")
