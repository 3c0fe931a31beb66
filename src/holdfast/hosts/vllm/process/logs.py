"""Log of Holdfast and of the host in a protected process: the host's handlers and format, beside every decision.

A log that nobody reads (a full pipe, Ctrl-S) must not stop a repair: records wait in a bounded queue, which a thread
writes. Records beyond the bound are dropped, and counted in the first line that is written later.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import logging.handlers
import os
import select
from multiprocessing import util
from queue import SimpleQueue
from typing import Any

from holdfast.hosts.vllm.process.log_json import JsonLines
from holdfast.hosts.vllm.process.log_repeats import Repeats
from holdfast.hosts.vllm.process.log_texts import without_texts
from holdfast.sentinel.beside import Beside

FLUSH_S = 2.0  # at the end of a process
_ACCESS = "uvicorn.access"  # its formatter needs the arguments of an access
SERVER_LOGGERS = ("uvicorn", _ACCESS, "uvicorn.error")  # those of the HTTP server


def share_log() -> None:
    """Give our logger the host's handlers and level. Idempotent."""
    host, ours = logging.getLogger("vllm"), logging.getLogger("holdfast")
    if host.handlers:
        ours.handlers = list(host.handlers)
        ours.setLevel(host.level)
        ours.propagate = False


def write_log_beside(*more: str) -> None:
    """Let a thread write the records of the host's logger, of ours, and of the loggers `more`. Idempotent."""
    for name in ("vllm", *more):
        divert(logging.getLogger(name))
    share_log()


def divert(log: logging.Logger) -> None:
    """Put a queue in front of every handler of a logger. Idempotent."""
    log.handlers = [h if isinstance(h, _Queued) else _Queued(_formatted(h)) for h in log.handlers]


def write_as(log_format: str) -> None:
    """Write the log as the setting says from now on: `json` is one object per line. Idempotent."""
    global _writes_json
    _writes_json = log_format == "json"
    for name in ("vllm", *SERVER_LOGGERS):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, _Queued):
                handler.target = _formatted(handler.target)


def _formatted(target: logging.Handler) -> logging.Handler:
    if not _writes_json or isinstance(target, JsonLines) or not isinstance(target, logging.StreamHandler):
        return target
    return JsonLines(target)


def flush_log(timeout_s: float = FLUSH_S) -> bool:
    """Wait for at most `timeout_s` until all records are written; return whether they are."""
    _repeats.flush()
    return _lines.flush(timeout_s)


class _Queued(logging.handlers.QueueHandler):
    """Handler that hands records to the thread of the log, in the text that the record has now."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__(SimpleQueue())  # unused: `enqueue` is replaced
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        if not _repeats.is_repeated(id(self), record, super().emit):
            super().emit(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record to write later: with plain arguments, which some formatters read, else as a text."""
        record = without_texts(record)
        if isinstance(self.target, JsonLines):
            return self.target.prepared(record)
        plain = isinstance(record.args, tuple) and all(
            isinstance(a, (str, int, float, type(None))) for a in record.args
        )
        if plain and not record.exc_info:
            return copy.copy(record)
        prepared: logging.LogRecord = super().prepare(record)
        return prepared

    def enqueue(self, record: logging.LogRecord) -> None:
        _flush_at_exit()
        _lines.put((self.target, record))


_writes_json = False
_told_dropped = 0
_flushed_by = 0  # the process whose end flushes the log


def _flush_at_exit() -> None:
    global _flushed_by, _told_dropped
    if _flushed_by != os.getpid():
        _flushed_by, _told_dropped = os.getpid(), 0
        util.Finalize(None, flush_log, exitpriority=-100)  # runs at the end of children of multiprocessing too


def _write(line: tuple[logging.Handler, logging.LogRecord]) -> None:
    global _told_dropped
    target, record = line
    if record.levelno < target.level:
        return
    await_writable(getattr(target, "stream", None))
    if (dropped := _lines.dropped) > _told_dropped and record.name != _ACCESS:
        told = copy.copy(record)
        told.levelno, told.levelname, told.name = logging.WARNING, "WARNING", "holdfast"
        told.args = None
        told.msg = f"{dropped - _told_dropped} log lines dropped: nobody read the log"
        _told_dropped = dropped
        target.handle(told)
        await_writable(getattr(target, "stream", None))
    target.handle(record)


def await_writable(stream: Any, timeout_s: float | None = None) -> bool:
    """Wait until a stream takes a line; return whether it does.

    A thread that waits inside of a write would keep the stream's lock, on which the end of the interpreter waits.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a stream that is no file, or closed
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
    return True


def _due_in_s() -> float | None:
    return _repeats.due_in_s()


def _show_counts() -> None:
    _repeats.show_ended()


_lines: Beside[tuple[logging.Handler, logging.LogRecord]] = Beside(
    "log lines", _write, due_in_s=_due_in_s, when_due=_show_counts
)
_repeats: Repeats = Repeats(_lines.wake)
