"""Ends the connections of broken gloo groups gently: read from no more at once, closed once nobody writes any more.

gloo (torch 2.13) tells an error to the operations of a connection that have not begun to send. One whose message is
on its way is forgotten (`Pair::signalException` leaves `tx_` out), and whoever waits for it waits half an hour. So no
write may fail or stall while its process is about to learn of the break: the kernel's end of each connection is kept
open and emptied until the peer has let go as well. Of breaks in the middle of an all-reduce one in four hung when
connections were simply shut down; this way none of 640 with 256 bytes and 80 kB, 5 of 520 with 4 MB (two ranks).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence

GRACE_S = 0.05  # the peers are told to break as well; one that is not learns it from the end of the connection
LINGER_S = 2.0
_EMPTY_EVERY_S = 0.002
_CHUNK_BYTES, _CHUNKS_AT_ONCE = 1 << 20, 64  # more than the kernel holds for a connection
_UNDER_WAY = frozenset({1, 4, 5})  # the states of a connection whose peer may still write (see tcp_states.h)


def stop_reading(connection: socket.socket) -> bool:
    """Have gloo read the end of a connection now. Whether there was a peer; a listener stays as it is."""
    try:
        connection.getpeername()
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        return False
    connection.setblocking(False)
    return True


def close_gently(connections: Sequence[socket.socket]) -> None:
    """Close duplicates of connections that are read from no more, each in its time. Does not wait."""
    if connections:
        threading.Thread(target=_close, args=(list(connections),), name="holdfast-closer", daemon=True).start()


def _close(connections: list[socket.socket]) -> None:
    began = time.monotonic()
    _empty_until(connections, began + GRACE_S)
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    _empty_until(connections, began + LINGER_S)
    for connection in connections:
        connection.close()


def _empty_until(connections: list[socket.socket], deadline: float) -> None:
    """Take what the peers still write, so that they come to an end with it."""
    while connections and time.monotonic() < deadline:
        for connection in connections:
            _take_what_is_there(connection)
        for connection in [c for c in connections if _is_over(c)]:
            connections.remove(connection)
            connection.close()
        time.sleep(_EMPTY_EVERY_S)


def _take_what_is_there(connection: socket.socket) -> None:
    """Bounded: a peer that writes on and on must not keep the others from their end."""
    with contextlib.suppress(OSError):  # nothing there, or no connection any more
        for _ in range(_CHUNKS_AT_ONCE):
            if not connection.recv(_CHUNK_BYTES):
                return


def _is_over(connection: socket.socket) -> bool:
    """Whether the peer has closed its end, or the connection is gone."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _UNDER_WAY
    except OSError:
        return True
