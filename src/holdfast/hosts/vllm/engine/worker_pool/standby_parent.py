"""The parent of standbys: a process that has imported all that a worker imports, and forks standbys on request."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from holdfast.hosts.vllm.process.forking import CannotFork, ForkServer, make_ends

logger = logging.getLogger("holdfast")

MAX_LOSSES = 3  # in a row; then standbys are new interpreters
END_TIMEOUT_S = 1.0


class StandbyParent:
    """The parent of standbys, seen from the engine core. The pool's thread, except for `server`.

    Args:
        start: starts the process that waits at the given end of a connection.
    """

    def __init__(self, start: Callable[[socket.socket], Any]) -> None:
        self._start = start
        self._process: Any = None
        self._server: ForkServer | None = None
        self._is_ready = False
        self._losses = 0

    @property
    def server(self) -> ForkServer | None:
        """The server that forks a worker at once; None as long as there is none. Any thread."""
        server = self._server
        return server if self._is_ready and server is not None and not server.is_lost else None

    @property
    def is_given_up(self) -> bool:
        return self._losses >= MAX_LOSSES

    def prepare(self) -> bool:
        """Start the parent where there is none; return whether standbys can be started now."""
        if self.server is not None or self.is_given_up:
            return True
        if self._server is not None:
            try:
                self._is_ready = self._server.await_ready(0.0)
                return self._is_ready
            except CannotFork as error:
                self._lose(str(error))
        else:
            self._begin()
        return self.is_given_up

    def note_failure(self) -> None:
        """Take note that a forked standby did not become ready: after some in a row nothing is forked any more."""
        self._lose("a forked standby failed")

    def note_success(self) -> None:
        self._losses = 0

    def close(self) -> None:
        """End the parent. Idempotent."""
        server, process = self._server, self._process
        self._server = self._process = None
        self._is_ready = False
        if server is not None:
            server.close()
        if process is not None:
            process.kill()
            process.join(END_TIMEOUT_S)

    def _begin(self) -> None:
        ours, theirs = make_ends()
        with contextlib.closing(theirs):
            try:
                self._process = self._start(theirs)
            except Exception as error:
                ours.close()
                self._lose(str(error))
                return
        self._server = ForkServer(ours)

    def _lose(self, why: str) -> None:
        self._losses += 1
        self.close()
        then = "standbys are new interpreters from now on" if self.is_given_up else "starting another"
        logger.warning("the process that forks standbys is lost (%s); %s", why, then)
