"""A process prepares itself only with what nobody else wants of the processors, until it is told to hurry.

The lowest scheduling policy is not enough: the host's processes yield while they wait for each other, and each
time such a process would be given a whole slice. So it rests by itself for as long as it finds that others wait for
the processors too. Nor may everybody leave that policy again: without a privilege that most containers lack it
would keep a rank for ever, so whoever could not leave it only rests.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from types import FrameType

QUANTUM_S = 0.01  # of its own processor time between two looks
REST_S = 0.09
CONTENDED = 0.2  # waited, as a share of what it ran

# Ignored by whoever does not wait for it, so that it harms no process that is told too early or too late.
HURRY = signal.SIGURG

_seen = (0, 0)


def begin() -> None:
    """Main thread, before anything heavy is imported."""
    slow_down(os.getpid())
    signal.signal(HURRY, _hurried)
    signal.signal(signal.SIGPROF, _look)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, QUANTUM_S, QUANTUM_S)


def end() -> None:
    """From now on this process takes what it needs. Main thread."""
    if idle_can_be_left():
        _set_policy(os.getpid(), os.SCHED_OTHER)
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    signal.signal(signal.SIGPROF, _rest_no_more)  # were it ignored, one that has just come would raise somewhere


def slow_down(pid: int) -> None:
    """Give a process the lowest scheduling policy, where it can be given the ordinary one again."""
    if idle_can_be_left():
        _set_policy(pid, os.SCHED_IDLE)


def hurry(pid: int) -> None:
    """From now on a gentle process is needed: it no longer rests, and has the ordinary scheduling policy."""
    if idle_can_be_left():
        _set_policy(pid, os.SCHED_OTHER)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, HURRY)


@functools.cache
def idle_can_be_left() -> bool:
    """Whether this process may lift a process out of the lowest policy. Tried out on a thread of its own."""
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
    """The scheduling policy of every thread of a process. What it cannot set it leaves: only the pace depends on it."""
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
    """Of the main thread: on a processor, and waiting for one. Nanoseconds."""
    with open("/proc/self/schedstat") as stat:
        ran, waited, _ = stat.read().split()
    return int(ran), int(waited)
