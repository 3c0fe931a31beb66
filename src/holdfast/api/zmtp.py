"""Wire protocol of a ZeroMQ PUB socket towards one subscriber: ZMTP 3.0, mechanism NULL or PLAIN. Does no I/O.

Own code, since libzmq keeps every subscription of every peer without a bound. Here a peer may send frames of a
kilobyte and a hundred frames in ten seconds, and only prefixes of the topic are remembered.
"""

from __future__ import annotations

import hmac

MAX_FRAME_BYTES = 1024
MAX_FRAMES = 100  # of a peer, within a window
WINDOW_S = 10.0

_SIGNATURE = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00"
GREETING = _SIGNATURE + b"NULL".ljust(20, b"\x00") + b"\x00" * 32
GREETING_PLAIN = _SIGNATURE + b"PLAIN".ljust(20, b"\x00") + b"\x01" + b"\x00" * 31  # the server's end
_MORE, _LONG, _COMMAND = 1, 2, 4
_SUBSCRIBERS = (b"SUB", b"XSUB")


class BadPeer(Exception):
    """The peer speaks another protocol, or sends more than it may."""


def frame(body: bytes, flags: int = 0) -> bytes:
    """Return a frame of the protocol."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | _LONG]) + len(body).to_bytes(8, "big") + body


def message(topic: bytes, body: bytes) -> bytes:
    """Return a message of two frames."""
    return frame(topic, _MORE) + frame(body)


READY = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB", _COMMAND)
WELCOME = frame(b"\x07WELCOME", _COMMAND)


class Conversation:
    """State of the conversation with one subscriber to `topic`, who needs the password where there is one."""

    def __init__(self, topic: bytes, password: bytes = b"") -> None:
        self.is_ready = False
        self.greeting = GREETING_PLAIN if password else GREETING
        self._password = password
        self._is_admitted = not password
        self._topic = topic
        self._greeted = False
        self._read = bytearray()
        self._prefixes: set[bytes] = set()
        self._frames = 0
        self._window_ends = 0.0

    @property
    def is_subscribed(self) -> bool:
        return self.is_ready and bool(self._prefixes)

    def take(self, data: bytes, now: float) -> bytes:
        """Take bytes of the peer; return those that answer them. Raises `BadPeer`."""
        self._read += data
        answer = b""
        if not self._greeted:
            if len(self._read) < len(GREETING):
                if not self._read.startswith(b"\xff"[: len(self._read)]):
                    raise BadPeer
                return b""
            self._greet()
            answer = b"" if self._password else READY
        while (received := self._next_frame()) is not None:
            self._count(now)
            answer += self._obey(*received)
        return answer

    def _greet(self) -> None:
        said, self._read = self._read[: len(GREETING)], self._read[len(GREETING) :]
        if said[0] != 0xFF or said[9] != 0x7F or said[10] < 3 or said[12:32] != self.greeting[12:32]:
            raise BadPeer
        self._greeted = True

    def _next_frame(self) -> tuple[int, bytes] | None:
        if not self._read:
            return None
        flags = self._read[0]
        begin = 9 if flags & _LONG else 2
        if len(self._read) < begin:
            return None
        size = int.from_bytes(self._read[1:begin], "big")
        if flags & ~(_LONG | _COMMAND) or size > MAX_FRAME_BYTES:
            raise BadPeer
        if len(self._read) < begin + size:
            return None
        body = bytes(self._read[begin : begin + size])
        del self._read[: begin + size]
        return flags, body

    def _count(self, now: float) -> None:
        if now >= self._window_ends:
            self._frames, self._window_ends = 0, now + WINDOW_S
        self._frames += 1
        if self._frames > MAX_FRAMES:
            raise BadPeer

    def _obey(self, flags: int, body: bytes) -> bytes:
        if not self._is_admitted:
            if not flags & _COMMAND or not hmac.compare_digest(_password_in(body), self._password):
                raise BadPeer
            self._is_admitted = True
            return WELCOME
        if not self.is_ready:
            if not flags & _COMMAND or not _is_subscriber(body, b"\x08INITIATE" if self._password else b"\x05READY"):
                raise BadPeer
            self.is_ready = True
            return READY if self._password else b""
        if not flags & _COMMAND:
            self._subscribe(body[1:], wanted=body[:1] == b"\x01")
        elif body.startswith(b"\x04PING"):
            return frame(b"\x04PONG" + body[7:], _COMMAND)
        elif body.startswith(b"\x09SUBSCRIBE"):
            self._subscribe(body[10:], wanted=True)
        elif body.startswith(b"\x06CANCEL"):
            self._subscribe(body[7:], wanted=False)
        return b""

    def _subscribe(self, prefix: bytes, *, wanted: bool) -> None:
        if not wanted:
            self._prefixes.discard(prefix)
        elif self._topic.startswith(prefix):
            self._prefixes.add(prefix)


def _password_in(hello: bytes) -> bytes:
    """Return the password of a HELLO command, after a user name of any kind; empty for another command."""
    if not hello.startswith(b"\x05HELLO"):
        return b""
    password = hello[7 + hello[6] :] if len(hello) > 6 else b""
    return password[1:] if password[:1] == bytes([len(password) - 1 & 0xFF]) else b""


def _is_subscriber(ready: bytes, command: bytes) -> bool:
    name = b"\x0bsocket-type"
    at = ready.lower().find(name)
    value = ready[at + len(name) :]
    size = int.from_bytes(value[:4], "big")
    return ready.startswith(command) and at > 0 and value[4 : 4 + size] in _SUBSCRIBERS
