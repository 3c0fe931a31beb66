"""A thread that watches outlives failures of its looks."""

from __future__ import annotations

import logging
import threading

import pytest

from holdfast.sentinel import watching
from holdfast.sentinel.watching import WatchThread

WITHIN_S = 10.0


def test_a_failed_look_is_logged_once_and_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "AFTER_FAILURE_S", 0.0)
    monkeypatch.setattr(logging.getLogger("holdfast"), "propagate", True)
    looks: list[int] = []
    enough = threading.Event()

    def look() -> None:
        looks.append(1)
        if len(looks) >= 3:
            enough.set()
        raise UnicodeDecodeError("utf-8", b"\xc3", 0, 1, "cut")

    watch = WatchThread("ExampleWatch", look)
    watch.start()
    assert enough.wait(WITHIN_S)
    watch.close(WITHIN_S)
    assert watch.is_closed
    assert [r.getMessage() for r in caplog.records] == ["ExampleWatch failed at one look, and goes on; told once"]


def test_a_look_may_close_the_thread() -> None:
    looks: list[int] = []
    ended = threading.Event()

    def look() -> None:
        looks.append(1)
        watch.close(WITHIN_S)
        ended.set()

    watch = WatchThread("ExampleWatch", look)
    watch.start()
    assert ended.wait(WITHIN_S)
    watch.close(WITHIN_S)
    assert looks == [1]


def test_a_wait_ends_when_the_thread_is_closed() -> None:
    watch = WatchThread("ExampleWatch", lambda: watch.wait(WITHIN_S), 60.0)
    watch.close()
    watch.wait(WITHIN_S)
    assert watch.is_closed
