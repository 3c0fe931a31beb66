"""Server of notifications: one thread, a bounded number of subscribers, and a bounded queue for each."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from queue import Empty, SimpleQueue

from holdfast.api import zmtp
from holdfast.sentinel.beside import count_dropped

MAX_PEERS = 32
MAX_WAITING_BYTES = 1 << 20  # of each subscriber
HANDSHAKE_S = 10.0
LINGER_S = 1.0  # the last event says why the instance ended: give it a moment to leave
_MAX_PUBLISHED = 1000
_READ_BYTES = 4096
_TICK_S = 1.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
_UNACKNOWLEDGED_MS = 60_000
LOST = "notifications to slow subscribers"


class _Peer:
    def __init__(self, connection: socket.socket, conversation: zmtp.Conversation, now: float) -> None:
        self.connection = connection
        self.conversation = conversation
        self.waiting = bytearray(conversation.greeting)
        self.deadline = now + HANDSHAKE_S


class Subscribers:
    """Sends messages of one topic to all that have subscribed. Owns the listening socket that it is given.

    Args:
        password: what a subscriber has to send; empty where everybody may subscribe.
    """

    def __init__(self, listener: socket.socket, topic: bytes, password: bytes = b"") -> None:
        self._listener = listener
        self._password = password
        self._topic = topic
        self._peers: dict[socket.socket, _Peer] = {}
        self._published: SimpleQueue[bytes] = SimpleQueue()
        self._ends_at: float | None = None
        self._listens_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write, listener):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="Notifications", daemon=True)
        self._thread.start()

    def publish(self, body: bytes) -> None:
        """Send a message to all subscribers. Never waits; any thread."""
        if self._ends_at is not None or self._published.qsize() >= _MAX_PUBLISHED:
            count_dropped(LOST)
            return
        self._published.put(zmtp.message(self._topic, body))
        self._wake()

    def close(self) -> None:
        """Close after at most a second for waiting messages. Any thread; idempotent."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + LINGER_S
            self._wake()
        self._thread.join(2 * LINGER_S)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nothing is left to wake
            self._wake_write.send(b"\x00")

    # ---- the thread

    def _run(self) -> None:
        while self._ends_at is None or (self._busy() and time.monotonic() < self._ends_at):
            with contextlib.suppress(Exception):  # one subscriber's failure is not the others'
                self._turn()
        for peer in tuple(self._peers.values()):
            self._drop(peer)
        for end in (self._listener, self._wake_read, self._wake_write):
            end.close()
        self._selector.close()

    def _busy(self) -> bool:
        return not self._published.empty() or any(p.waiting for p in self._peers.values() if p.conversation.is_ready)

    def _turn(self) -> None:
        self._listen()
        for key, events in self._selector.select(_TICK_S if self._ends_at is None else 0.05):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(_READ_BYTES)
            elif (peer := self._peers.get(key.fileobj)) is not None:  # type: ignore[call-overload]
                self._serve(peer, events)
        self._spread()
        now = time.monotonic()
        for peer in [p for p in self._peers.values() if not p.conversation.is_ready and now >= p.deadline]:
            self._drop(peer)

    def _listen(self) -> None:
        if self._listener not in self._selector.get_map() and time.monotonic() >= self._listens_at:
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # often no descriptor is left: try again later, instead of at once for ever
            self._selector.unregister(self._listener)
            self._listens_at = time.monotonic() + _TICK_S
            return
        if len(self._peers) >= MAX_PEERS and not self._make_room():
            connection.close()
            return
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option, value in (*_KEEPALIVE, (socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        conversation = zmtp.Conversation(self._topic, self._password)
        peer = self._peers[connection] = _Peer(connection, conversation, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)
        self._send(peer)

    def _make_room(self) -> bool:
        """Drop the oldest peer that has subscribed to nothing; return whether there was any."""
        idle = next((p for p in self._peers.values() if not p.conversation.is_subscribed), None)
        if idle is not None:
            self._drop(idle)
        return idle is not None

    def _serve(self, peer: _Peer, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                data = peer.connection.recv(_READ_BYTES)
                answer = peer.conversation.take(data, time.monotonic()) if data else None
            except BlockingIOError:
                return
            except (OSError, zmtp.BadPeer):
                answer = None
            if answer is None or len(peer.waiting) > MAX_WAITING_BYTES:
                self._drop(peer)
                return
            peer.waiting += answer
        self._send(peer)

    def _spread(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                message = self._published.get_nowait()
                for peer in [p for p in self._peers.values() if p.conversation.is_subscribed]:
                    if len(peer.waiting) + len(message) > MAX_WAITING_BYTES:
                        count_dropped(LOST)
                    else:
                        peer.waiting += message
                        self._send(peer)

    def _send(self, peer: _Peer) -> None:
        try:
            while peer.waiting:
                del peer.waiting[: peer.connection.send(peer.waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.waiting else 0)
        self._selector.modify(peer.connection, wanted)

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.connection, None) is not None:
            self._selector.unregister(peer.connection)
            peer.connection.close()
