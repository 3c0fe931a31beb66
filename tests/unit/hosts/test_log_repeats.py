"""The root cause once, then a count; the log as JSON."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
import weakref

import pytest

from holdfast.hosts.vllm.process import log_repeats, logs
from holdfast.hosts.vllm.process.log_json import JsonLines
from holdfast.hosts.vllm.process.log_repeats import Repeats


class Boom(Exception):
    """An exception that can be referred to weakly."""


class PrefixedStream(io.StringIO):
    """As a child's stream, whose `write` the host has replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.write = lambda text: io.StringIO.write(self, "(EngineCore pid=7) " + text)  # type: ignore[method-assign]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, io.StringIO]:
    stream = PrefixedStream()
    logger = logging.Logger("host-of-a-test")
    logger.addHandler(logging.StreamHandler(stream))
    monkeypatch.setattr(logs, "_repeats", Repeats(logs._lines.wake))
    monkeypatch.setattr(logs, "_writes_json", False)
    logs.divert(logger)
    return logger, stream


def fail(log: logging.Logger, times: int, text: str = "engine dead") -> None:
    for number in range(times):
        try:
            raise RuntimeError(f"{text} {number}")
        except RuntimeError:
            log.exception("request %d failed", number)


def test_a_thousand_requests_that_fail_for_the_same_reason_are_one_stack_and_a_count(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, stream = log
    fail(logger, 1000)
    fail(logger, 1, "another reason")
    logger.warning("no exception")
    logger.warning("no exception")
    assert logs.flush_log(10.0)
    shown = stream.getvalue()
    assert shown.count("Traceback") == 2
    assert "999 more errors for the same reason, which the log shows once: RuntimeError" in shown
    assert shown.count("no exception") == 2


def test_the_count_is_shown_after_the_window_and_the_next_error_in_full(
    log: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, stream = log
    monkeypatch.setattr(log_repeats, "WINDOW_S", 0.0)
    fail(logger, 3)
    assert logs.flush_log(10.0)
    assert stream.getvalue().count("Traceback") == 3


def test_the_count_is_shown_once_the_window_has_ended_and_by_no_thread_of_its_own(
    log: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, stream = log
    monkeypatch.setattr(log_repeats, "WINDOW_S", 0.02)
    fail(logger, 1, "the first starts the thread of the log")
    threads = threading.active_count()
    fail(logger, 3, "one reason")
    fail(logger, 3, "another reason")
    assert threading.active_count() == threads
    deadline = time.monotonic() + 10.0
    while stream.getvalue().count("2 more errors") < 2:
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.002)


def test_no_exception_is_kept_for_the_count(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, _ = log
    error = Boom("boom")
    kept = weakref.ref(error)
    logger.error("failed", exc_info=error)
    logger.error("failed", exc_info=error)
    assert logs._lines.flush(10.0)
    del error
    assert kept() is None


def test_kinds_of_errors_are_bounded(log: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    logger, stream = log
    monkeypatch.setattr(log_repeats, "MAX_KINDS", 1)
    fail(logger, 1, "one")
    fail(logger, 2, "two")
    assert logs.flush_log(10.0)
    assert stream.getvalue().count("Traceback") == 3, "what is not compared is shown"


def test_json_is_one_object_per_line_without_the_prefix_of_the_host(
    log: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, stream = log
    monkeypatch.setattr(logs, "_writes_json", True)
    [handler] = logger.handlers
    handler.target = logs._formatted(handler.target)
    assert isinstance(handler.target, JsonLines) and logs._formatted(handler.target) is handler.target
    logger.error("engine %d\nfaulted", 0)
    fail(logger, 1)
    assert logs.flush_log(10.0)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("ERROR", "host-of-a-test", "engine 0\nfaulted")
    assert "Traceback" in second["stack"] and set(first) == {"at", "level", "logger", "process", "pid", "message"}
