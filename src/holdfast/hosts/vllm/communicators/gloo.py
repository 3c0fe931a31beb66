"""Which sockets belong to gloo, and how to break them. Touches no other socket, waits for nobody, never raises.

gloo serves each process group by one thread over one epoll, which holds the group's listener, a pipe of
its own and every connection to a peer. So a group's connections are what its epoll holds at the moment
of the break, also those made late; the epoll is the one with a pipe that came while the group was made. A
socket that somebody else opens meanwhile is in none of them. Looking for gloo's threads instead is a race:
a thread that has not run yet has neither its name nor waits for its epoll.

`abort` of a gloo process group has no effect (torch 2.13): the operation stays blocked. Shutting the reading
side of its connections down makes it raise within milliseconds, and every later one at once; how the peers'
come to an end is told in `closing`, and what remains when one does not in `stuck`.
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass

from holdfast.hosts.vllm.communicators.closing import close_gently, stop_reading

EPOLL = "anon_inode:[eventpoll]"


@dataclass(frozen=True)
class Watched:
    """One file that an epoll watches."""

    fd: int
    inode: int


@dataclass(frozen=True)
class Loop:
    """The epoll of one process group.

    The number of a file is used again once it is closed, so the loop is known by the inode of its pipe.
    """

    epoll_fd: int
    pipe_inode: int

    def connections(self) -> list[Watched]:
        """The sockets it watches now, its listener too; none once the loop has ended."""
        watched = watched_by(self.epoll_fd)
        if all(w.inode != self.pipe_inode for w in watched):
            return []
        return [w for w in watched if w.inode != self.pipe_inode]

    @property
    def alive(self) -> bool:
        return any(w.inode == self.pipe_inode for w in watched_by(self.epoll_fd))


class GlooSockets:
    """The connections of every group made under watch. Creators add to it, any thread may break it."""

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._loops: frozenset[Loop] = frozenset()

    def present(self) -> frozenset[Loop]:
        """Every loop of the process, to be compared with those after a group was made."""
        return frozenset(loop for fd in os.listdir("/proc/self/fd") if (loop := _as_loop(int(fd))) is not None)

    def add_since(self, before: frozenset[Loop]) -> int:
        """Remember the loops that came since; returns how many."""
        found = self.present() - before
        with self._adding:
            self._loops |= found
        return len(found)

    def break_all(self) -> int:
        """End every connection; returns how many it was. Does not wait for the peers."""
        watched = [w for loop in self._loops for w in loop.connections()]
        ending = [connection for w in watched if (connection := _end(w)) is not None]
        close_gently(ending)
        with self._adding:
            self._loops = frozenset(loop for loop in self._loops if loop.alive)
        return len(ending)


def watched_by(epoll_fd: int) -> list[Watched]:
    """What an epoll watches; nothing where it is no epoll."""
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


def _end(watched: Watched) -> socket.socket | None:
    """A connection that is read from no more; none for a listener, whose end would upset gloo.

    gloo may close the socket and somebody open another under its number meanwhile, hence a duplicate,
    whose inode is looked at.
    """
    try:
        fd = os.dup(watched.fd)
    except OSError:
        return None
    if os.fstat(fd).st_ino != watched.inode:
        os.close(fd)
        return None
    connection = socket.socket(fileno=fd)
    if stop_reading(connection):
        return connection
    connection.close()
    return None
