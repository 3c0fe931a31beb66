"""Ends process groups beside the main thread: gloo needs some 20 ms for each, without the interpreter's lock."""

from __future__ import annotations

import threading
from typing import Any

REAP_TIMEOUT_S = 10.0


class Reaper:
    """One burial at a time; a second one waits for the first, with a bound."""

    def __init__(self) -> None:
        self._burial: threading.Thread | None = None

    def bury(self, groups: list[Any]) -> None:
        """Drop the last references to `groups`, elsewhere. The list is the reaper's from now on."""
        self.wait()
        self._burial = threading.Thread(target=groups.clear, name="holdfast-reaper", daemon=True)
        self._burial.start()

    def wait(self) -> None:
        if self._burial is not None:
            self._burial.join(REAP_TIMEOUT_S)
