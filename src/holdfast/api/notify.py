"""Announcement of every event: a line of the log, and a message of the PUB socket for subscribers to `vllm_fault`.

Never waits: messages that a slow subscriber does not take are dropped.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import ipaddress
import logging
import socket

import msgspec
import psutil

from holdfast.api.formats import TOPIC, describe_event, log_level, render_notification
from holdfast.api.subscribers import Subscribers
from holdfast.core.config import NO_NOTIFY_PORT, NOTIFY_PORT
from holdfast.core.errors import BadConfiguration, PortInUse
from holdfast.core.protocol.events import Event, InstanceView

logger = logging.getLogger("holdfast")

PORT_FLAG = "--external-fault-notify-port"
HOST_FLAG = "--external-fault-notify-host"


def log_event(event: Event, view: InstanceView) -> None:
    """Log an event."""
    logger.log(log_level(event), describe_event(event))


class Publisher:
    """Publisher of events, each as two frames: the topic, and a JSON object.

    `port` 0 takes any free one; `address` is what was bound. Subscribers need the password, where there is one.
    Raises `PortInUse` or `BadConfiguration`.
    """

    def __init__(self, host: str, port: int, password: bytes = b"") -> None:
        family, address = _resolve(host, port)
        try:
            listener = socket.create_server((address, port), family=family)
        except OSError as error:
            raise _explain(error, host, port) from None
        bound = listener.getsockname()[1]
        self.address = f"tcp://[{address}]:{bound}" if family == socket.AF_INET6 else f"tcp://{address}:{bound}"
        self._subscribers = Subscribers(listener, TOPIC, password)

    def publish(self, event: Event, view: InstanceView) -> None:
        """Send an event to all subscribers without waiting. Any thread."""
        self._subscribers.publish(msgspec.json.encode(render_notification(event, view)))

    def close(self) -> None:
        """Close after at most a second for queued events. Any thread; idempotent."""
        self._subscribers.close()


def notification_password(token: bytes) -> bytes:
    """Return the password of notifications, which follows from the control token and does not tell the token.

    The password crosses the network as it is, so it opens nothing but notifications.
    """
    return hmac.new(token, b"holdfast notifications", "sha256").hexdigest().encode()


def open_publisher(
    host: str, port: int | None, *, is_open: bool = False, token: bytes | None = None
) -> Publisher | None:
    """Open the publisher that the settings ask for; None when they ask for none.

    A default port that is taken gives way to a free one.

    Args:
        is_open: whether everybody who reaches an address beyond the loopback may listen.
        token: the configured control token, from which the password beyond the loopback follows.
    """
    if port == NO_NOTIFY_PORT:
        return None
    password = b"" if is_open or _is_loopback(host) else _password_beyond_the_loopback(host, token)
    if port is not None:
        return Publisher(host, port, password)
    try:
        return Publisher(host, NOTIFY_PORT, password)
    except PortInUse as error:
        publisher = Publisher(host, 0, password)
        logger.warning("%s; notifications are published at %s instead", error.message, publisher.address)
        return publisher


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(_resolve(host, 0)[1].partition("%")[0]).is_loopback


def _password_beyond_the_loopback(host: str, token: bytes | None) -> bytes:
    if token is None:
        raise BadConfiguration(
            f"{HOST_FLAG} {host}: everybody who reaches that address could read the events of this instance",
            hint="set a control token, use a loopback address, or accept this with --open-notifications-to-network",
        )
    return notification_password(token)


def _resolve(host: str, port: int) -> tuple[int, str]:
    """Return the family and the first address of a host name. Raises `BadConfiguration`."""
    name = None if host == "*" else host
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise BadConfiguration(f"cannot listen on {host!r}: {error}") from None
    return family, str(address[0])


def _explain(error: OSError, host: str, port: int) -> PortInUse | BadConfiguration:
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
