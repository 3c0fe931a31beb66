"""Announcement of every event: a line of the log, and a message of the PUB socket for subscribers to `vllm_fault`.

Owns one socket in a context of its own. Never waits: messages that a slow subscriber does not take are dropped.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading

import msgspec
import psutil
import zmq

from holdfast.api.formats import TOPIC, describe_event, log_level, render_notification
from holdfast.core.errors import BadConfiguration, PortInUse
from holdfast.core.protocol.events import Event, InstanceView

logger = logging.getLogger("holdfast")

PORT_FLAG = "--external-fault-notify-port"

_MAX_QUEUED = 1000
_LINGER_MS = 1000  # the last event says why the instance ended: give it a moment to leave
_HANDSHAKE_MS = 10_000
_MAX_SUBSCRIPTION_BYTES = 1024


def log_event(event: Event, view: InstanceView) -> None:
    """Log an event."""
    logger.log(log_level(event), describe_event(event))


class Publisher:
    """Publisher of events, each as two frames: the topic, and a JSON object.

    `port` 0 takes any free one; `address` is what was bound. Raises `PortInUse` or `BadConfiguration`.
    """

    def __init__(self, host: str, port: int) -> None:
        endpoint = _endpoint(host, port)
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = _open_socket(self._context)
        # Switched on for an IPv4 address it would show that address as a mapped one.
        self._socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise _explain(error, host, port) from None
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def publish(self, event: Event, view: InstanceView) -> None:
        """Send an event to all subscribers without waiting. Any thread."""
        body = msgspec.json.encode(render_notification(event, view))
        with self._lock, contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([TOPIC, body], flags=zmq.DONTWAIT)

    def close(self) -> None:
        """Close after at most a second for queued events. Any thread; idempotent."""
        with self._lock:
            self._socket.close(_LINGER_MS)
            self._context.term()


def _open_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    publisher = context.socket(zmq.PUB)
    publisher.setsockopt(zmq.LINGER, _LINGER_MS)
    publisher.setsockopt(zmq.SNDHWM, _MAX_QUEUED)
    # Peers send subscriptions only: a peer that sends more, or no greeting, is cut off.
    publisher.setsockopt(zmq.MAXMSGSIZE, _MAX_SUBSCRIPTION_BYTES)
    publisher.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    return publisher


def _endpoint(host: str, port: int) -> str:
    """The ZeroMQ endpoint of a host name or address: libzmq binds to addresses only."""
    name = None if host == "*" else host
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise BadConfiguration(f"cannot listen on {host!r}: {error}") from None
    return f"tcp://[{address[0]}]:{port}" if family == socket.AF_INET6 else f"tcp://{address[0]}:{port}"


def _explain(error: zmq.ZMQError, host: str, port: int) -> PortInUse | BadConfiguration:
    if error.errno == errno.EADDRINUSE:
        owner = _owner_of(port)
        return PortInUse(
            f"port {port} of {PORT_FLAG} is in use" + (f" by {owner}" if owner else ""),
            hint=f"choose another one with {PORT_FLAG}, or 0 for any free one",
        )
    return BadConfiguration(f"cannot listen on {host}:{port} ({PORT_FLAG}): {error.strerror}")


def _owner_of(port: int) -> str:
    """Return name and id of the process that listens on `port`; empty for an unknown process."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
