"""The log shows where an exception comes from, and nothing of what a user sent."""

from __future__ import annotations

import io
import logging

import pytest

from holdfast.hosts.vllm.process.log_texts import without_texts
from holdfast.hosts.vllm.process.logs import divert, flush_log

PROMPT = "Dear doctor, my password is hunter2"


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    logger = logging.Logger("log texts")
    logger.addHandler(logging.StreamHandler(stream))
    divert(logger)
    return logger, stream


def raised() -> ValueError:
    """Return an error with a cause, both with a prompt."""
    try:
        try:
            int(PROMPT)
        except ValueError as error:
            raise ValueError(f"the prompt {PROMPT} is no number") from error
    except ValueError as error:
        error.add_note(PROMPT)
        return error


def test_a_stack_in_the_log_has_frames_and_types_and_no_values(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    error = raised()
    logger.error("a step failed: %s", str(error), exc_info=error)
    assert flush_log()
    shown = stream.getvalue()
    assert PROMPT not in shown
    assert shown.startswith("a step failed: the prompt <...> is no number\nTraceback (most recent call last):\n")
    assert "ValueError: invalid literal for int() with base 10: <...>\n" in shown
    assert shown.endswith("\nValueError: the prompt <...> is no number\n")
    assert "in raised" in shown


def test_an_exception_as_the_argument_of_a_line_is_shown_without_values(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = log
    logger.warning("%s failed: %s", "it", raised())
    assert flush_log()
    assert stream.getvalue() == "it failed: ValueError: the prompt <...> is no number\n"


def test_a_text_that_was_formatted_before_is_formatted_again() -> None:
    error = raised()
    record = logging.LogRecord("n", logging.ERROR, "f", 1, "it failed", (), (type(error), error, error.__traceback__))
    logging.Formatter().format(record)
    assert PROMPT in str(record.exc_text)
    assert PROMPT not in str(without_texts(record).exc_text)


def test_a_line_without_an_exception_is_left_as_it_is() -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, "%s of %d", ("x", 2), None)
    assert without_texts(record) is record
