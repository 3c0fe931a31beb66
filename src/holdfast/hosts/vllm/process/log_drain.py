"""Drain of an instance's output: a small process that always reads, and forwards as fast as the reader takes.

A pipe that nobody reads, a terminal under Ctrl-S or a hung file system blocks every process that writes there. The
processes of the instance write to the drain instead. What the reader has not taken waits here, within a bound; beyond
the bound the oldest lines are dropped, and counted in a line of their own. The drain ends once every writer has ended.

Run as a script in an isolated interpreter, with the standard library only: the start takes a few milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass

LIMIT_BYTES = 4 * 2**20
READ_BYTES = 65536
PIECE_BYTES = select.PIPE_BUF  # a pipe takes as much at once or not at all
MAX_READS = 64  # until the loop looks at everything else again
END_S = 2.0  # for a slow reader, after the last writer has ended
STUCK_S = 0.5  # a write that takes longer has no reader

_CONTROL = 0


@dataclass(frozen=True)
class Piece:
    """Bytes to write: `lines` lines, after a notice of `dropped` lines."""

    data: bytes
    lines: int
    dropped: int


class Waiting:
    """Output that waits for its reader, at most `limit` bytes: the oldest whole lines are dropped beyond that."""

    def __init__(self, limit: int = LIMIT_BYTES) -> None:
        self.limit = limit
        self.dropped = 0  # not told yet
        self._bytes = bytearray()
        self._is_in_line = False  # the last piece ended in the middle of a line

    def __len__(self) -> int:
        return len(self._bytes)

    def add(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > self.limit:
            surplus = len(self._bytes) - self.limit * 3 // 4  # seldom, since every time moves the rest
            end = self._bytes.find(b"\n", surplus) + 1 or len(self._bytes)
            self.dropped += max(self._bytes.count(b"\n", 0, end), 1)
            del self._bytes[:end]

    def take(self) -> Piece:
        """Remove the next bytes, whole lines where possible; after a gap they begin with a notice."""
        end = self._bytes.rfind(b"\n", 0, PIECE_BYTES) + 1 or min(PIECE_BYTES, len(self._bytes))
        data = bytes(self._bytes[:end])
        del self._bytes[:end]
        lines, dropped, notice = data.count(b"\n"), self.dropped, b""
        if dropped:
            begin = b"\n" if self._is_in_line else b""
            notice = begin + b"holdfast: %d log lines dropped: nobody read the log\n" % dropped
        self.dropped = 0
        self._is_in_line = not data.endswith(b"\n")
        return Piece(notice + data, lines, dropped)

    def lose(self, piece: Piece) -> None:
        """Count the lines of a piece that could not be written."""
        self.dropped += piece.dropped + max(piece.lines, 1)


class Forward:
    """Forwards what `source` gives to `target`, which may block: hence in a thread of its own."""

    def __init__(self, source: int, target: int, limit: int = LIMIT_BYTES) -> None:
        self.source = source
        self._target = target
        self._waiting = Waiting(limit)
        self._changed = threading.Condition()
        self._added = self._written = 0
        self._began_s: float | None = None  # the write in progress
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        os.set_blocking(source, False)

    def start(self) -> None:
        self._thread.start()

    def read(self) -> bool:
        """Take over what was written so far; return False after the end of the last writer."""
        for _ in range(MAX_READS):
            try:
                data = os.read(self.source, READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:  # of a pseudo terminal without writers
                return False
            if not data:
                return False
            with self._changed:
                self._waiting.add(data)
                self._added += len(data)
                self._changed.notify_all()
        return True

    def await_written(self, deadline_s: float) -> None:
        """Wait until everything that was read is written or dropped, unless the reader takes nothing."""
        with self._changed:
            mark = self._added
            while self._written < mark and not self._is_stuck() and time.monotonic() < deadline_s:
                self._changed.wait(0.05)

    def end(self, deadline_s: float) -> None:
        """Write the rest."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline_s - time.monotonic()))

    def _is_stuck(self) -> bool:
        return self._began_s is not None and time.monotonic() - self._began_s > STUCK_S

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                piece = self._waiting.take()
                upto = self._added - len(self._waiting)
                self._began_s = time.monotonic()
            try:
                _write(self._target, piece.data)
            except OSError:  # a full disk, or a reader that has gone: later lines are tried again
                with self._changed:
                    self._waiting.lose(piece)
            with self._changed:
                self._written, self._began_s = upto, None
                self._changed.notify_all()


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # whoever shares the descriptor has chosen that
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()


def main(channels: list[str]) -> None:
    """Forward until every writer has ended. Each channel is given as `SOURCE:TARGET`, numbers of descriptors.

    The control socket asks with a byte whether all output so far is written; the same byte is the answer. The signals
    that end an instance are blocked from the start.
    """
    forwards = {one.source: one for one in (Forward(*map(int, channel.split(":"))) for channel in channels)}
    for forward in forwards.values():
        forward.start()
    _forward_until_end(dict(forwards), socket.socket(fileno=_CONTROL))
    deadline_s = time.monotonic() + END_S
    for forward in forwards.values():
        forward.end(deadline_s)
    os._exit(0)  # a thread may hang in a write


def _forward_until_end(forwards: dict[int, Forward], control: socket.socket) -> None:
    poll = select.poll()
    for descriptor in (*forwards, _CONTROL):
        poll.register(descriptor, select.POLLIN)
    while forwards:
        asked = b""
        for descriptor, _ in poll.poll():
            if descriptor == _CONTROL:
                asked = _receive(control)
                if not asked:
                    poll.unregister(_CONTROL)  # the owner has ended, or has another control socket
        for descriptor in [source for source, forward in forwards.items() if not forward.read()]:
            poll.unregister(descriptor)
            del forwards[descriptor]
        if asked:
            with contextlib.suppress(RuntimeError):  # without a thread there is no answer
                threading.Thread(target=_answer, args=(control, asked, list(forwards.values())), daemon=True).start()


def _receive(control: socket.socket) -> bytes:
    try:
        return control.recv(64)
    except OSError:
        return b""


def _answer(control: socket.socket, asked: bytes, forwards: list[Forward]) -> None:
    deadline_s = time.monotonic() + END_S
    for forward in forwards:
        forward.await_written(deadline_s)
    with contextlib.suppress(OSError):
        control.send(asked)


if __name__ == "__main__":
    main(sys.argv[1:])
