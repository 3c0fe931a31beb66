"""However a command is told to stop, what it started is ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

SCRIPT = """
import asyncio, sys, time
from holdfast.cli.interrupting import ending_like_ctrl_c
async def wait():
    print("waiting", flush=True)
    await asyncio.sleep(30)
def plain():
    print("waiting", flush=True)
    time.sleep(30)
with ending_like_ctrl_c():
    try:
        asyncio.run(wait()) if sys.argv[1] == "loop" else plain()
    except KeyboardInterrupt:
        print("ended cleanly", flush=True)
"""


def until_it_waits(pid: int, within_s: float = 10.0) -> None:
    """Wait until a process sleeps: Python sees a signal that comes just before the wait only when the wait is over."""
    deadline = time.monotonic() + within_s
    while psutil.Process(pid).status() != psutil.STATUS_SLEEPING and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["loop", "plain"])
def test_signals_end_it_like_ctrl_c(number: signal.Signals, where: str) -> None:
    """Also in an event loop, and also when the shell had SIGINT ignored."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-c", ignoring, sys.executable, "-c", SCRIPT, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        until_it_waits(process.pid)
        process.send_signal(number)
        assert process.communicate(timeout=10)[0] == "ended cleanly\n"
