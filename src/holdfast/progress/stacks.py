"""Python stacks of a process on demand: it is asked by a signal, and answers from whatever it is stuck in.

What is written names files, lines and functions: never a value. A stopped process answers nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

ANSWER_S = 0.2
MAX_CHARS = 200_000
_LOOK_S = 0.02
_SIGNAL = signal.SIGUSR2


def answer_for_stacks(folder: str) -> None:
    """Have this process write the stacks of its threads into `folder` when it is asked. Main thread."""
    if signal.getsignal(_SIGNAL) is not signal.SIG_DFL:
        return  # somebody else's: without the file nobody asks
    file = _path(folder, os.getpid()).open("w")
    faulthandler.register(_SIGNAL, file=file, all_threads=True)


def ask_for_stacks(folder: str, pids: Iterable[int]) -> dict[int, str]:
    """The stacks of each process's threads, or why there are none. Waits up to `ANSWER_S`, for all together."""
    answers: dict[int, str] = {}
    asked: dict[int, int] = {}  # and what its file held before
    for pid in pids:
        try:
            asked[pid] = _path(folder, pid).stat().st_size
            os.kill(pid, _SIGNAL)
        except OSError as error:
            asked.pop(pid, None)
            answers[pid] = f"not asked: {error.strerror}\n"
    _await_answers(folder, asked)
    for pid, before in asked.items():
        with _path(folder, pid).open(errors="replace") as file:
            file.seek(before)
            answers[pid] = file.read(MAX_CHARS) or f"no answer within {ANSWER_S:g} s\n"
    return answers


def _await_answers(folder: str, asked: dict[int, int]) -> None:
    """Until every file has grown and no longer grows, or time is up."""
    deadline, sizes = time.monotonic() + ANSWER_S, dict(asked)
    while time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        now = {pid: _path(folder, pid).stat().st_size for pid in asked}
        if all(now[pid] > asked[pid] and now[pid] == sizes[pid] for pid in asked):
            return
        sizes = now


def forget_stacks(folder: str, pid: int) -> None:
    """The process is gone, and its answers are told."""
    with contextlib.suppress(OSError):
        _path(folder, pid).unlink()


def _path(folder: str, pid: int) -> Path:
    return Path(folder) / f"stacks-{pid}"
