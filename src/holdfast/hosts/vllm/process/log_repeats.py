"""The root cause once: of exceptions that are alike, the log shows the first with its stack, and then a count.

A thousand requests that fail for the same reason are one line and a count. Takes no lock, so that a signal handler may
log.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import threading
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

    first: logging.LogRecord
    show: Show
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    count: int = 0
    ends_at: float = field(default_factory=lambda: time.monotonic() + WINDOW_S)


class Repeats:
    """Exceptions that were logged within the last seconds. Any thread."""

    def __init__(self) -> None:
        self._alike: dict[_Key, _Alike] = {}

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
                self._show_later(key)
            return True
        if len(self._alike) < MAX_KINDS or self._forget_ended():
            self._alike[key] = _Alike(record, show)
        return False

    def flush(self) -> None:
        """Show all counts now."""
        for key in list(self._alike):
            self._show_count(key)

    def _show_later(self, key: _Key) -> None:
        with contextlib.suppress(RuntimeError):  # no thread is left: the count is shown at the end
            timer = threading.Timer(WINDOW_S, self._show_count, (key,))
            timer.daemon = True
            timer.start()

    def _show_count(self, key: _Key) -> None:
        alike = self._alike.pop(key, None)
        if alike is None or not alike.count or not alike.first.exc_info:
            return
        error = alike.first.exc_info[1]
        told = logging.LogRecord(
            alike.first.name, alike.first.levelno, alike.first.pathname, alike.first.lineno, _COUNTED, None, None
        )
        told.args = (alike.count, str(account_of(error)) if error is not None else "")
        alike.show(told)

    def _forget_ended(self) -> bool:
        now = time.monotonic()
        for key in [k for k, alike in list(self._alike.items()) if now >= alike.ends_at]:
            self._show_count(key)
        return len(self._alike) < MAX_KINDS


_COUNTED = "%d more errors for the same reason, which the log shows once: %s"
