"""Whether a process's communicators are broken. A break during a rebuild counts against the rebuild."""

from __future__ import annotations

import threading


class BreakState:
    """Any thread breaks, the main one rebuilds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._breaks = 0
        self._mended = 0

    @property
    def broken(self) -> bool:
        return self._breaks != self._mended

    @property
    def breaks(self) -> int:
        """To be read before a rebuild, and given to `mend` after it."""
        return self._breaks

    def note(self) -> None:
        with self._lock:
            self._breaks += 1

    def mend(self, breaks: int) -> bool:
        """Whether no break came since there were `breaks`; then nothing is broken any more."""
        with self._lock:
            if breaks != self._breaks:
                return False
            self._mended = breaks
            return True
