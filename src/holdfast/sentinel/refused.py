"""Messages that a sentinel refuses: every one is counted, one line of the log in a minute says how many."""

from __future__ import annotations

import logging
import time

from holdfast.sentinel.beside import count_dropped

logger = logging.getLogger("holdfast")

LOG_EVERY_S = 60.0
MAX_REASON = 200  # a reason may quote the message, which is a megabyte at most
COUNTED_AS = "refused messages"


class RefusedMessages:
    """Counter of the messages that one thread refuses."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._untold = 0
        self._quiet_until = 0.0

    def note(self, why: object) -> None:
        """Count a refused message; `why` may quote what a stranger has sent."""
        count_dropped(COUNTED_AS)
        self._untold += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            text = f"{self._name}: {self._untold} message(s) dropped, the last one because: {printable(str(why))}"
            self._untold, self._quiet_until = 0, now + LOG_EVERY_S
            logger.warning(text)


def printable(text: str) -> str:
    """Return a text of a stranger as it may stand in a line of the log."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REASON])
