"""Threads that look again and again, and outlive what they look at."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger("holdfast")

AFTER_FAILURE_S = 0.2


class WatchThread:
    """Daemon thread that calls `look` until closed. A failed look is followed by the next; the first is logged.

    Args:
        look: may wait, for a bounded time, and may close the thread.
        pause_s: between two looks; 0 for a `look` that waits.
    """

    def __init__(self, name: str, look: Callable[[], None], pause_s: float = 0.0) -> None:
        self._look = look
        self._pause_s = pause_s
        self._has_failed = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, join_s: float = 0.0) -> None:
        """Make no further look; wait at most `join_s` for the end of a look. Idempotent; any thread."""
        self._closed.set()
        if join_s and self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(join_s)

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def wait(self, seconds: float) -> None:
        """Wait so many seconds, or until the thread is closed."""
        self._closed.wait(seconds)

    def note_failure(self) -> None:
        """Log the exception that is being handled, the first time only."""
        if not self._has_failed:
            logger.exception("%s failed at one look, and goes on; told once", self._thread.name)
        self._has_failed = True

    def _run(self) -> None:
        while not self._closed.wait(self._pause_s):
            try:
                self._look()
            except Exception:
                self.note_failure()
                self._closed.wait(AFTER_FAILURE_S)
