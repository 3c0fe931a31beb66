"""The root cause once: of exceptions that are alike, the log shows the first with its stack, and then a count.

A thousand requests that fail for the same reason are one line and a count. Takes no lock, so that a signal handler may
log. Keeps no exception, whose frames would hold the tensors of a failed step.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.core.faults.redaction import account_of, text_of

WINDOW_S = 10.0
MAX_KINDS = 256
_COMPARED_CHARS = 300
_VARIES = re.compile(r"\d+|\b[0-9a-f]{8,}\b")  # numbers and ids

Show = Callable[[logging.LogRecord], None]
_Key = tuple[int, str, str, str]


@dataclass
class _Alike:
    """Exceptions of one kind since the first, which was shown."""

    name: str
    level: int
    place: tuple[str, int]
    show: Show
    said: str = ""
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    count: int = 0
    ends_at: float = field(default_factory=lambda: time.monotonic() + WINDOW_S)


class Repeats:
    """Exceptions that were logged within the last seconds. Any thread.

    `wake` is called when a count is to be shown later: `due_in_s` and `show_ended` are for the thread that does.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._alike: dict[_Key, _Alike] = {}
        self._wake = wake

    def is_repeated(self, destination: int, record: logging.LogRecord, show: Show) -> bool:
        """Return whether a record only repeats another; the count is shown by `show` after the window."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None or record.levelno < logging.WARNING:
            return False
        text = _VARIES.sub("#", text_of(error)[:_COMPARED_CHARS])
        key = destination, record.name, type(error).__qualname__, text
        known = self._alike.get(key)
        if known is not None and time.monotonic() < known.ends_at:
            known.count = next(known.counter)
            if known.count == 1:
                known.said = str(account_of(error))
                self._wake()
            return True
        if known is not None:
            self._show_count(key)
        if len(self._alike) < MAX_KINDS or self._forget_ended():
            self._alike[key] = _Alike(record.name, record.levelno, (record.pathname, record.lineno), show)
        return False

    def due_in_s(self) -> float | None:
        """Return in how many seconds a count is to be shown; None without any."""
        ends = [alike.ends_at for alike in list(self._alike.values()) if alike.count]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def show_ended(self) -> None:
        """Show the counts of windows that have ended."""
        now = time.monotonic()
        for key in [k for k, alike in list(self._alike.items()) if alike.count and now >= alike.ends_at]:
            self._show_count(key)

    def flush(self) -> None:
        """Show all counts now."""
        for key in list(self._alike):
            self._show_count(key)

    def _show_count(self, key: _Key) -> None:
        alike = self._alike.pop(key, None)
        if alike is not None and alike.count:
            said = (alike.count, alike.said)
            alike.show(logging.LogRecord(alike.name, alike.level, *alike.place, _COUNTED, said, None))

    def _forget_ended(self) -> bool:
        now = time.monotonic()
        for key in [k for k, alike in list(self._alike.items()) if now >= alike.ends_at]:
            self._show_count(key)
        return len(self._alike) < MAX_KINDS


_COUNTED = "%d more errors for the same reason, which the log shows once: %s"
