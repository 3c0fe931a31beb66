"""Records of the log without the texts of exceptions: type, place and stack stay, and what may be user data goes."""

from __future__ import annotations

import copy
import logging
import traceback
from collections.abc import Iterator

from holdfast.core.faults.redaction import account_of

MAX_CHAIN = 8
MIN_CHARS = 4  # of a text that is looked for in a line


def without_texts(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record that shows exceptions without user data; the same record where it shows none."""
    shown = isinstance(record.args, tuple) and any(isinstance(a, BaseException) for a in record.args)
    error = record.exc_info[1] if record.exc_info else None
    if not shown and error is None and not record.exc_text:
        return record
    clean = copy.copy(record)
    if isinstance(record.args, tuple):
        clean.args = tuple(str(account_of(a)) if isinstance(a, BaseException) else a for a in record.args)
    clean.exc_text = None
    if error is not None:
        clean.msg, clean.args = _without_texts_of(error, clean.getMessage()), None
        clean.exc_text = "\n".join(_stacks(error))
    return clean


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error and those that led to the error, as a traceback shows them, the latest first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain and len(chain) < MAX_CHAIN:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def _stacks(error: BaseException) -> Iterator[str]:
    """Yield the lines of a traceback: the frames as usual, the texts without user data."""
    for index, each in enumerate(reversed(_chain(error))):
        if index:
            yield "\nThe exception above led to the following exception:\n"
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(each.__traceback__)).rstrip("\n")
        yield str(account_of(each))


def _without_texts_of(error: BaseException, line: str) -> str:
    for each in _chain(error):
        account = account_of(each)
        if account.full_text and len(raw := str(each)) >= MIN_CHARS:
            line = line.replace(raw, account.message)
    return line
