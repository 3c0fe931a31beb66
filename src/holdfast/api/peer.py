"""The peer of a request, as the transport of its connection describes the peer.

The server's own record of the client is no help: a proxy header may have changed the record, and a peer that has left
looks like a unix socket. So the gate, which is next to the server, asks the transport and leaves the answer in the
request's scope. Where a transport cannot be asked, the peer is unknown.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from starlette.types import Receive, Scope

from holdfast.api.access import Peer

_KEY = "holdfast.peer"
_CREDENTIALS = struct.Struct("3i")  # process, user and group, of unix(7)


def with_peer(scope: Scope, receive: Receive) -> Scope:
    """Return the scope with the peer of the connection that `receive` reads from; replaces what was there."""
    return {**scope, _KEY: _describe(_transport_of(receive))}


def peer_of(scope: Scope) -> Peer:
    """Return the peer that the gate has found; an unknown peer when no gate was passed."""
    peer = scope.get(_KEY)
    return peer if isinstance(peer, Peer) else Peer()


def _transport_of(receive: Receive) -> Any:
    """Return the transport of a connection of uvicorn, whose `receive` is a method of the request's cycle."""
    return getattr(getattr(receive, "__self__", None), "transport", None)


def _describe(transport: Any) -> Peer:
    try:
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return Peer(uid=_CREDENTIALS.unpack(packed)[1])
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            return Peer(address=sock.getpeername()[0])  # raises for a peer that has left
    except (OSError, AttributeError, TypeError, IndexError):
        pass
    return Peer()
