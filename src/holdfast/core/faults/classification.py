"""Fault classification: rows tried in order, an operator's own rows before built-in rows.

Owns the format of a row and the matching; built-in rows are in `fault_table`. Matching is bounded: texts to 2,000
characters, patterns to those that `patterns` accepts.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET

from holdfast.core.errors import BadConfiguration
from holdfast.core.faults.fault_table import (
    ERROR_ROWS,
    EXIT_ROWS,
    OF_THE_PROCESS,
    OTHER_EXIT,
    OTHER_SIGNAL,
    SIGNAL_NUMBERS,
    UNKNOWN_ERROR,
    Row,
)
from holdfast.core.faults.faults import Fault, FaultClass, bounded_ids
from holdfast.core.faults.patterns import compile_pattern
from holdfast.core.faults.redaction import MAX_TEXT_CHARS, account_of, stack_of

MAX_ROWS = 200
SETTING = "fault_classes"
NAMES_CAUSE = "holdfast_names_cause"  # attribute of an error: its `request_ids` are the cause
ADAPTER_ID = "holdfast_adapter_id"  # attribute of an error: the adapter that could not be loaded


class OwnRow(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename={"fault_class": "class"},
):
    """A row of an operator: a match is of class `fault_class`.

    `error_type` (the whole name of the exception's type) and `message` (anywhere in the text) are regular expressions
    that ignore case; a row with both needs both to match. `exit_code` or `signal` match the end of a process instead.
    """

    fault_class: FaultClass
    error_type: str | None = None
    message: str | None = None
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    signal: str | None = None
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] = "by a row of your own"


class Classification(msgspec.Struct, frozen=True):
    """Class of a fault with the reason; `is_own` when an operator's own row matched."""

    fault_class: FaultClass
    reason: str
    is_own: bool = False


class Classifier:
    """Classifier with the rows of an instance. Raises `BadConfiguration` for a row that cannot be used."""

    def __init__(self, own: Sequence[OwnRow] = ()) -> None:
        self.own = tuple(_as_row(row, number) for number, row in enumerate(own, 1))
        self._errors = _compiled(row for row in self.own if not row.is_exit)
        self._exits = {(row.exit_code, row.signal): row for row in (*EXIT_ROWS, *reversed(self.own)) if row.is_exit}

    def of_error(self, error_type: str, message: str) -> Classification:
        """Return the class of an exception from the name of the type and the message."""
        text = message[:MAX_TEXT_CHARS]
        for row, by_type, by_message in (*self._errors, *_built_in_errors()):
            typed = by_type is None or by_type.fullmatch(error_type)
            if typed and (by_message is None or by_message.search(text)):
                return Classification(row.fault_class, row.reason, row.is_own)
        return Classification(UNKNOWN_ERROR.fault_class, UNKNOWN_ERROR.reason)

    def of_exit(self, exit_code: int | None) -> Classification:
        """Return the class of the end of a process; a negative exit code is the number of a signal."""
        signal = None if exit_code is None or exit_code >= 0 else _SIGNAL_NAMES.get(-exit_code, "")
        row = self._exits.get((exit_code if signal is None else None, signal))
        if row is None:
            row = OTHER_EXIT if signal is None else OTHER_SIGNAL
        return Classification(row.fault_class, row.reason, row.is_own)

    def rows(self) -> tuple[Row, ...]:
        """Return every row in matching order; the last rows match what no earlier row names."""
        return (*self.own, *ERROR_ROWS, UNKNOWN_ERROR, *EXIT_ROWS, OTHER_EXIT, OTHER_SIGNAL)


_SIGNAL_NAMES = {number: name for name, number in SIGNAL_NUMBERS.items()}
_Compiled = tuple[Row, "re.Pattern[str] | None", "re.Pattern[str] | None"]


def _compiled(rows: Any) -> tuple[_Compiled, ...]:
    return tuple((row, _compile(row.error_type), _compile(row.message)) for row in rows)


@functools.cache
def _built_in_errors() -> tuple[_Compiled, ...]:
    return _compiled(ERROR_ROWS)


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    return None if pattern is None else re.compile(pattern, re.IGNORECASE)


@functools.cache
def default_classifier() -> Classifier:
    """Return the classifier of the built-in rows alone."""
    return Classifier()


def fault_of(error: BaseException, classifier: Classifier, **about: Any) -> Fault:
    """Return an exception as a fault. `about`: further fields of the fault, such as engine and rank."""
    account = account_of(error)
    classification = classifier.of_error(account.error_type, account.full_text or account.message)
    adapter_id = getattr(error, ADAPTER_ID, 0)
    if adapter_id and not classification.is_own:
        classification = Classification(FaultClass.TRANSIENT, "an adapter cannot be loaded; the processes are intact")
    return Fault(
        fault_class=classification.fault_class,
        error_type=account.error_type,
        message=account.message,
        place=account.place,
        full_text=account.full_text or UNSET,
        stack=stack_of(error) or UNSET,
        class_reason=classification.reason,
        request_ids=bounded_ids(getattr(error, "request_ids", ())),
        names_cause=getattr(error, NAMES_CAUSE, False),
        adapter_id=adapter_id,
        **about,
    )


def parse_rows(raw: object) -> tuple[OwnRow, ...]:
    """Return an operator's rows from decoded JSON. Raises `BadConfiguration` with the row and the reason."""
    if not isinstance(raw, (list, tuple)):
        raise BadConfiguration(f"{SETTING} must be a list of rows", hint=_EXAMPLE)
    if len(raw) > MAX_ROWS:
        raise BadConfiguration(f"{SETTING}: {len(raw)} rows are more than {MAX_ROWS}")
    rows = tuple(_parse_row(number, each) for number, each in enumerate(raw, 1))
    Classifier(rows)
    return rows


def _parse_row(number: int, raw: object) -> OwnRow:
    if isinstance(raw, OwnRow):
        return raw
    shown = _shown(raw)
    if not isinstance(raw, Mapping):
        raise BadConfiguration(f"{SETTING}, row {number} ({shown}): not an object", hint=_EXAMPLE)
    try:
        return msgspec.convert(dict(raw), OwnRow)
    except msgspec.ValidationError as error:
        raise BadConfiguration(f"{SETTING}, row {number} ({shown}): {error}", hint=_known(str(error))) from None


def _known(problem: str) -> str:
    if "enum" in problem:
        return "classes: " + ", ".join(FaultClass)
    return "keys: class, error_type, message, exit_code, signal, reason"


def _as_row(own: OwnRow, number: int) -> Row:
    if why := _why_unusable(own):
        raise BadConfiguration(f"{SETTING}, row {number} ({_shown(msgspec.to_builtins(own))}): {why}")
    return Row(
        own.fault_class,
        own.reason,
        error_type=own.error_type,
        message=own.message,
        exit_code=own.exit_code,
        signal=own.signal,
        is_own=True,
    )


def _why_unusable(own: OwnRow) -> str | None:
    of_errors = [what for what in (own.error_type, own.message) if what is not None]
    of_exits = [what for what in (own.exit_code, own.signal) if what is not None]
    if len(of_exits) > 1 or bool(of_errors) == bool(of_exits):
        return "it needs error_type or message or both, or else one of exit_code and signal"
    if of_exits and own.fault_class not in OF_THE_PROCESS:
        of_these = " or ".join(OF_THE_PROCESS)
        return f"a process that has ended cannot be of class {own.fault_class}, only {of_these}"
    if own.signal is not None and own.signal not in SIGNAL_NUMBERS:
        return f"no signal is called {own.signal!r}; there are {', '.join(SIGNAL_NUMBERS)}"
    return next(filter(None, (_why_no_pattern(own, "error_type"), _why_no_pattern(own, "message"))), None)


def _why_no_pattern(own: OwnRow, name: str) -> str | None:
    pattern = getattr(own, name)
    try:
        if pattern is not None:
            compile_pattern(pattern)
    except ValueError as error:
        return f"{name}: {error}"
    return None


def _shown(raw: object) -> str:
    try:
        text = msgspec.json.encode(raw).decode()
    except (TypeError, ValueError):
        text = repr(raw)
    return text if len(text) <= 160 else f"{text[:157]}..."


_EXAMPLE = 'for example [{"message": "my driver is gone", "class": "device"}]'
