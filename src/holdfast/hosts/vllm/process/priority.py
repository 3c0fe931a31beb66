"""Background CPU priority: a process prepares itself on idle processors until it is hurried.

The lowest scheduling policy alone is not enough: the host's processes yield while they wait for each other, and a
background process would get a whole time slice at every yield. Hence a background process also sleeps while others
wait for the processors. Leaving the lowest policy takes a privilege that most containers lack; without the privilege a
background process keeps the ordinary policy and only sleeps.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

QUANTUM_S = 0.01  # own processor time between two checks
REST_S = 0.09
CONTENDED = 0.2  # waiting time as a share of running time

# Ignored by default, hence harmless when it comes too late.
HURRY = signal.SIGURG

_seen = (0, 0)


def begin() -> None:
    """Give the process background priority, unless it was hurried already. Main thread, before any heavy import."""
    signal.signal(HURRY, _hurried)
    signal.signal(signal.SIGPROF, _look)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, QUANTUM_S, QUANTUM_S)
    if HURRY not in signal.sigpending():
        slow_down(os.getpid())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {HURRY})


@contextlib.contextmanager
def hurry_is_kept() -> Iterator[None]:
    """Let every process that the thread starts in the block keep a hurry that comes before `begin` handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {HURRY})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end() -> None:
    """Give the process ordinary priority. Main thread."""
    if idle_can_be_left():
        _set_policy(os.getpid(), os.SCHED_OTHER)
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    signal.signal(signal.SIGPROF, _rest_no_more)  # were SIGPROF ignored, a pending signal would raise somewhere


def slow_down(pid: int) -> None:
    """Give a process the lowest scheduling policy, if the ordinary policy can be restored later."""
    if idle_can_be_left():
        _set_policy(pid, os.SCHED_IDLE)


def hurry(pid: int) -> None:
    """Give a background process ordinary priority: no more sleeps, and the ordinary scheduling policy."""
    if idle_can_be_left():
        _set_policy(pid, os.SCHED_OTHER)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, HURRY)


@functools.cache
def idle_can_be_left() -> bool:
    """Return whether the process may lift a process out of the lowest policy, tried out on a thread."""
    succeeded: list[bool] = []

    def try_out() -> None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            succeeded.append(True)

    trial = threading.Thread(target=try_out)
    trial.start()
    trial.join()
    return bool(succeeded)


def _set_policy(pid: int, policy: int) -> None:
    """Set the scheduling policy of every thread of a process; failures are ignored, as only the pace changes."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                os.sched_setscheduler(int(thread), policy, os.sched_param(0))


def _hurried(signum: int, frame: FrameType | None) -> None:
    end()


def _rest_no_more(signum: int, frame: FrameType | None) -> None:
    pass


def _look(signum: int, frame: FrameType | None) -> None:
    global _seen
    (ran, waited), _seen = _seen, _ran_and_waited_ns()
    if _seen[1] - waited > CONTENDED * (_seen[0] - ran):
        time.sleep(REST_S)


def _ran_and_waited_ns() -> tuple[int, int]:
    """Return the nanoseconds that the main thread has run, and has waited for a processor; zeros when unknown.

    Runs in a signal handler, where an exception would surface anywhere. Some kernels count nothing.
    """
    try:
        with open("/proc/self/schedstat") as stat:
            ran, waited = stat.read().split()[:2]
        return int(ran), int(waited)
    except (OSError, ValueError):
        return 0, 0
