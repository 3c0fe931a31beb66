"""A standby prepares itself only with what nobody else wants of the processors.

The lowest scheduling policy is not enough: the host's processes yield while they wait for each other, and each
time a standby would be given a whole slice. So it rests by itself for as long as it finds that others wait for
the processors too, and stops doing so once it is given the ordinary policy, which is how it is told to hurry.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

QUANTUM_S = 0.01  # of its own processor time between two looks
REST_S = 0.09
CONTENDED = 0.2  # waited, as a share of what it ran

_seen = (0, 0)


class GentleMain:
    """The main function of a process that is gentle from its first moment on.

    Pickled, it is a call: it is made in the new process before what the function is given is unpickled, which
    imports the whole host.
    """

    def __init__(self, main: Callable[..., None]) -> None:
        self._main = main

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _gently, (self._main,)


def _gently(main: Callable[..., None]) -> Callable[..., None]:
    begin()
    return main


def begin() -> None:
    """Main thread, before anything heavy is imported."""
    with contextlib.suppress(OSError):  # where it may not, it only rests
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    signal.signal(signal.SIGPROF, _look)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, QUANTUM_S, QUANTUM_S)


def end() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    signal.signal(signal.SIGPROF, signal.SIG_IGN)


def _look(signum: int, frame: FrameType | None) -> None:
    global _seen
    if os.sched_getscheduler(0) != os.SCHED_IDLE:
        end()
        return
    (ran, waited), _seen = _seen, _ran_and_waited_ns()
    if _seen[1] - waited > CONTENDED * (_seen[0] - ran):
        time.sleep(REST_S)


def _ran_and_waited_ns() -> tuple[int, int]:
    """Of the main thread: on a processor, and waiting for one. Nanoseconds."""
    with open("/proc/self/schedstat") as stat:
        ran, waited, _ = stat.read().split()
    return int(ran), int(waited)
