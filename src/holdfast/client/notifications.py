"""Notifications of a server as they are published: every event with the status after it, without polling.

A subscriber that is too slow loses some: a gap in `sequence` shows that, and `Client.events` fills the gap.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from holdfast.api.formats import TOPIC, Notification

USERNAME = b"holdfast"
RECEIVE_S = 1.0


def notifications(address: str, password: bytes = b"", *, idle_s: float | None = None) -> Iterator[Notification]:
    """Yield every notification from the `notify_address` of a status; end after `idle_s` without one.

    Args:
        password: beyond the loopback, what `holdfast token --notifications` prints.
    """
    import zmq  # status and commands do without

    context = zmq.Context()
    socket = context.socket(zmq.SUB)
    try:
        if password:
            socket.plain_username, socket.plain_password = USERNAME, password
        socket.connect(address)
        socket.subscribe(TOPIC)
        while socket.poll(None if idle_s is None else int(idle_s * 1000)):
            _, body = socket.recv_multipart()
            yield msgspec.json.decode(body, type=Notification)
    finally:
        socket.close(linger=0)
        context.term()
