"""The log as one JSON object per line, for `--log-format json`."""

from __future__ import annotations

import copy
import logging
import os
from datetime import UTC, datetime

import msgspec


class JsonLines(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler that writes records as JSON, one on a line, without the prefix that the host gives lines of children."""

    def __init__(self, like: logging.StreamHandler) -> None:  # type: ignore[type-arg]
        super().__init__(like.stream)
        self.setLevel(like.level)
        self.setFormatter(JsonFormatter())

    def prepared(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a record that can be written later: its message as it is now, its stack apart from the message."""
        plain = copy.copy(record)
        plain.msg, plain.args = record.getMessage(), None
        if record.exc_info and not record.exc_text:
            plain.exc_text = logging.Formatter().formatException(record.exc_info)
        plain.exc_info = None
        return plain

    def emit(self, record: logging.LogRecord) -> None:
        try:
            type(self.stream).write(self.stream, self.format(record) + "\n")
            self.flush()
        except Exception:
            self.handleError(record)


class JsonFormatter(logging.Formatter):
    """Formatter of a record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.processName,
            "pid": record.process or os.getpid(),
            "message": record.getMessage(),
        }
        if record.exc_text:
            told["stack"] = record.exc_text
        return msgspec.json.encode(told).decode()
