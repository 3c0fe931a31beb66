"""Python stacks of a process on demand: a signal asks, and the process answers even while stuck.

Stacks name files, lines and functions, never a value. A stopped process does not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from holdfast.progress.places import find, make_in, places

logger = logging.getLogger("holdfast")

ANSWER_S = 0.2
MAX_CHARS = 200_000
_LOOK_S = 0.02
_SIGNAL = signal.SIGUSR2


def answer_for_stacks(folder: str) -> None:
    """Make the process write the stacks of all threads into `folder` on demand. Main thread only."""
    if signal.getsignal(_SIGNAL) is not signal.SIG_DFL:
        return  # another handler is installed: without the file no process asks

    def answer_in(place: Path) -> None:
        faulthandler.register(_SIGNAL, file=(place / _name(os.getpid())).open("w"), all_threads=True)

    try:
        make_in(folder, answer_in)
    except OSError as error:
        logger.warning("this process cannot tell the stacks of its threads: %s", error)


def ask_for_stacks(folder: str, pids: Iterable[int]) -> dict[int, str]:
    """Return the stacks of each process, or the reason for missing stacks; wait at most `ANSWER_S` in total."""
    answers: dict[int, str] = {}
    asked: dict[int, int] = {}  # size of its file before
    for pid in pids:
        try:
            asked[pid] = _path(folder, pid).stat().st_size
            os.kill(pid, _SIGNAL)
        except OSError as error:
            asked.pop(pid, None)
            answers[pid] = f"not asked: {error.strerror}\n"
    _await_answers(folder, asked)
    for pid, before in asked.items():
        try:
            with _path(folder, pid).open(errors="replace") as file:
                file.seek(before)
                answers[pid] = file.read(MAX_CHARS) or f"no answer within {ANSWER_S:g} s\n"
        except OSError as error:
            answers[pid] = f"not readable: {error.strerror}\n"
    return answers


def _await_answers(folder: str, asked: dict[int, int]) -> None:
    """Wait until every file has grown and stopped growing, or until the time is up."""
    deadline, sizes = time.monotonic() + ANSWER_S, dict(asked)
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = {pid: _size(folder, pid) for pid in asked}
        if all(now[pid] > asked[pid] and now[pid] == sizes[pid] for pid in asked):
            return
        sizes = now


def _size(folder: str, pid: int) -> int:
    """Return the size of a process's answers; 0 when the file cannot be looked at."""
    try:
        return _path(folder, pid).stat().st_size
    except OSError:
        return 0


def forget_stacks(folder: str, pid: int) -> None:
    """Remove the answers of a process that is gone."""
    for place in places(folder):
        with contextlib.suppress(OSError):
            (place / _name(pid)).unlink()


def _path(folder: str, pid: int) -> Path:
    return find(folder, _name(pid))


def _name(pid: int) -> str:
    return f"stacks-{pid}"
