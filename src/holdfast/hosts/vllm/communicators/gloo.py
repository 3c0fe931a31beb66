"""Find the sockets of gloo's process groups and break them. Touches no other socket, never waits, never raises.

**Find.** gloo serves each process group by one thread over one epoll, which holds the group's listener, a pipe of
the thread and every connection to a peer. The connections of a group are therefore what its epoll holds at the moment
of the break, connections made late included; the epoll is the one with a pipe that appeared while the group was made.
A socket that other code opens meanwhile is in none of them. Looking for gloo's threads instead would be a race: a
thread that has not run yet has no name and waits for no epoll.

**Break.** `abort` of a gloo process group has no effect (torch 2.13): the operation stays blocked. Shutting down the
reading side of the connections makes the operation raise within milliseconds, and every later one at once.

**Close.** gloo reports an error to the operations of a connection that have not begun to send. An operation whose
message is on its way is forgotten (`Pair::signalException` leaves `tx_` out), and its caller waits half an hour. So
no write may fail or stall while its process is about to learn of the break: the kernel's end of each connection
stays open and is drained until the peer has closed as well. With connections simply shut down, one in four breaks in
the middle of an all-reduce hung; drained, none of 640 with 256 bytes and 80 kB, 5 of 520 with 4 MB (two ranks).
`collective_under_way` finds the thread that hangs nevertheless.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType, FrameType

from holdfast.hosts.vllm.contract.communicator_touchpoints import CPU_ALL_REDUCE

EPOLL = "anon_inode:[eventpoll]"

GRACE_S = 0.05  # the peers are told to break as well; a peer that is not sees the connection end after this time
LINGER_S = 2.0
_DRAIN_EVERY_S = 0.002
_CHUNK_BYTES, _CHUNKS_AT_ONCE = 1 << 20, 64  # more than the kernel holds for a connection
_PEER_MAY_WRITE = frozenset({1, 4, 5})  # ESTABLISHED, FIN_WAIT1, FIN_WAIT2 (see tcp_states.h)

# Files whose frames are on top while the interpreter waits for an operation of a process group, and functions in
# files that wait for further things too.
_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "vllm/distributed/parallel_state.py")
_COLLECTIVE_FUNCTIONS = (("vllm/distributed/utils.py", CPU_ALL_REDUCE.name),)


@dataclass(frozen=True)
class Watched:
    """A file that an epoll watches."""

    fd: int
    inode: int


@dataclass(frozen=True)
class Loop:
    """The epoll of a process group.

    The number of a file is used again once the file is closed, so a loop is identified by the inode of its pipe.
    """

    epoll_fd: int
    pipe_inode: int

    def connections(self) -> list[Watched]:
        """Return the sockets watched now, the listener included; none once the loop has ended."""
        watched = watched_by(self.epoll_fd)
        if all(w.inode != self.pipe_inode for w in watched):
            return []
        return [w for w in watched if w.inode != self.pipe_inode]

    @property
    def alive(self) -> bool:
        return any(w.inode == self.pipe_inode for w in watched_by(self.epoll_fd))


class GlooSockets:
    """The connections of every group made under watch. The makers of groups add to the set, any thread may break."""

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._loops: frozenset[Loop] = frozenset()

    def present(self) -> frozenset[Loop]:
        """Return every loop of the process, to be compared with the loops after a group was made."""
        return frozenset(loop for fd in os.listdir("/proc/self/fd") if (loop := _as_loop(int(fd))) is not None)

    def add_since(self, before: frozenset[Loop]) -> int:
        """Remember the loops that appeared since `before`; return how many."""
        found = self.present() - before
        with self._adding:
            self._loops |= found
        return len(found)

    def break_all(self) -> int:
        """End every connection and return how many there were. Does not wait for the peers."""
        watched = [w for loop in self._loops for w in loop.connections()]
        ending = [connection for w in watched if (connection := _stop_reading(w)) is not None]
        if ending:
            threading.Thread(target=_drain_and_close, args=(ending,), name="holdfast-closer", daemon=True).start()
        with self._adding:
            self._loops = frozenset(loop for loop in self._loops if loop.alive)
        return len(ending)


def watched_by(epoll_fd: int) -> list[Watched]:
    """Return the files that an epoll watches; none where the descriptor is no epoll."""
    try:
        with open(f"/proc/self/fdinfo/{epoll_fd}") as info:
            rows = [line.split() for line in info if line.startswith("tfd:")]
    except OSError:
        return []
    return [Watched(int(row[1]), _inode(row)) for row in rows]


def _inode(row: list[str]) -> int:
    return next(int(word.removeprefix("ino:"), 16) for word in row if word.startswith("ino:"))


def _as_loop(fd: int) -> Loop | None:
    if _target(fd) != EPOLL:
        return None
    pipes = [w.inode for w in watched_by(fd) if _target(w.fd) == f"pipe:[{w.inode}]"]
    return Loop(fd, pipes[0]) if len(pipes) == 1 else None


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


# ---- breaking and closing


def _stop_reading(watched: Watched) -> socket.socket | None:
    """Have gloo read the end of a connection now; return a duplicate of the connection, None for a listener.

    Works on a duplicate with the expected inode: gloo may close the socket meanwhile, and other code may open a file
    under the same number. Ending a listener would upset gloo.
    """
    try:
        fd = os.dup(watched.fd)
    except OSError:
        return None
    if os.fstat(fd).st_ino != watched.inode:
        os.close(fd)
        return None
    connection = socket.socket(fileno=fd)
    try:
        connection.getpeername()
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def _drain_and_close(connections: Sequence[socket.socket]) -> None:
    """Drain the connections, stop writing after `GRACE_S`, and close after `LINGER_S` at the latest."""
    began, left = time.monotonic(), list(connections)
    _drain_until(left, began + GRACE_S)
    for connection in left:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    _drain_until(left, began + LINGER_S)
    for connection in left:
        connection.close()


def _drain_until(connections: list[socket.socket], deadline: float) -> None:
    """Drain connections, so that writes of peers complete; close and remove connections that the peer has closed."""
    while connections and time.monotonic() < deadline:
        for connection in connections:
            _drain(connection)
        for connection in [c for c in connections if _closed_by_peer(c)]:
            connections.remove(connection)
            connection.close()
        time.sleep(_DRAIN_EVERY_S)


def _drain(connection: socket.socket) -> None:
    """Read a bounded amount: a peer that keeps writing must not delay the end of the remaining connections."""
    with contextlib.suppress(OSError):  # nothing to read, or the connection is gone
        for _ in range(_CHUNKS_AT_ONCE):
            if not connection.recv(_CHUNK_BYTES):
                return


def _closed_by_peer(connection: socket.socket) -> bool:
    """Tell whether the peer has closed the connection, or the connection is gone."""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in _PEER_MAY_WRITE
    except OSError:
        return True


# ---- the rare thread that stays blocked


def collective_under_way(thread_id: int) -> str | None:
    """Name the collective that a thread waits in, with the same text for the same call; None outside of collectives.

    Looks from another thread and costs the watched thread nothing. An operation that was in the middle of a message
    when its group was broken waits until the timeout of the group, half an hour by default. That is rare, and only
    the end of the process ends the wait.
    """
    frame = sys._current_frames().get(thread_id)
    if frame is None or not _is_collective(frame.f_code):
        return None
    return f"{frame.f_code.co_name} (call {id(frame):x}, for {_caller(frame)})"


def _is_collective(code: CodeType) -> bool:
    return code.co_filename.endswith(_COLLECTIVES) or any(
        code.co_name == name and code.co_filename.endswith(file) for file, name in _COLLECTIVE_FUNCTIONS
    )


def _caller(frame: FrameType) -> str:
    """Return the innermost function outside of torch's and the host's communication code."""
    at: FrameType | None = frame
    while at is not None and "/distributed/" in at.f_code.co_filename:
        at = at.f_back
    return at.f_code.co_qualname if at is not None else "unknown"
