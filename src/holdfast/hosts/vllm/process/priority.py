"""Background CPU priority: a process prepares itself on idle processors, or in a share of busy ones, until hurried.

Idle processors: the lowest scheduling policy alone is not enough. The host's processes yield while they wait for each
other, and a background process would get a whole time slice at every yield. Hence a background process also sleeps
while others wait for the processors. Leaving the lowest policy takes a privilege that most containers lack; without the
privilege a background process keeps the ordinary policy and only sleeps.

A share: on a machine that serves at full load no processor is ever idle, and such a process would never be prepared.
A paced process keeps the ordinary policy and sleeps beside others until its processor time is `SHARE` of the time. It
waits while a recovery is under way.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from types import FrameType

QUANTUM_S = 0.01  # own processor time between two checks
REST_S = 0.09
CONTENDED = 0.2  # waiting time as a share of running time
SHARE = 0.08  # of one processor
LONGEST_REST_S = 2.0  # after a long call, which no signal handler can interrupt
NAP_S = 0.02
HELD_S = 30.0  # a recovery that takes longer waits for something else than a processor

# Ignored by default, hence harmless when it comes too late.
HURRY = signal.SIGURG

_MOMENT = struct.Struct("d")
_processors = os.cpu_count() or 1

_seen = (0, 0)
_used_s = 0.0
_is_paced = False
_is_hurried = False
_held: mmap.mmap | None = None  # until when paced processes wait; in memory that forked processes share


def begin(*, paced: bool = False) -> None:
    """Give the process background priority, unless it was hurried already. Main thread, before any heavy import.

    Args:
        paced: take a share of busy processors instead of idle processors only.
    """
    global _is_paced, _is_hurried, _used_s
    _is_paced, _is_hurried, _used_s = paced, False, time.process_time()
    signal.signal(HURRY, _hurried)
    signal.signal(signal.SIGPROF, _look)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, QUANTUM_S, QUANTUM_S)
    if HURRY not in signal.sigpending() and not paced:
        slow_down(os.getpid())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {HURRY})


def share_hold() -> None:
    """Let `hold` and `release` reach the processes that are forked from now on. Idempotent."""
    global _held
    if _held is None:
        _held = mmap.mmap(-1, _MOMENT.size)


def hold() -> None:
    """Have paced processes wait until `release`, for `HELD_S` at most. Any thread."""
    if _held is not None:
        _MOMENT.pack_into(_held, 0, time.monotonic() + HELD_S)


def release() -> None:
    """End a `hold`. Any thread."""
    if _held is not None:
        _MOMENT.pack_into(_held, 0, 0.0)


def is_held() -> bool:
    """Return whether paced processes wait now."""
    return _held is not None and time.monotonic() < _MOMENT.unpack_from(_held)[0]


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
    global _is_hurried
    _is_hurried = True
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
    is_contended = _seen[1] - waited > CONTENDED * (_seen[0] - ran)
    if _is_paced:
        _keep_to_share(is_contended or _no_processor_is_idle())
    elif is_contended:
        time.sleep(REST_S)


def _keep_to_share(is_contended: bool) -> None:
    """Sleep for as long as the processor time since the last look is more than the share; and while held."""
    global _used_s
    used_s = time.process_time()
    rest_s = (used_s - _used_s) * (1.0 / SHARE - 1.0) if is_contended else 0.0
    until = time.monotonic() + min(rest_s, LONGEST_REST_S)
    while not _is_hurried and (time.monotonic() < until or is_held()):
        time.sleep(NAP_S)
    _used_s = time.process_time()


def _no_processor_is_idle() -> bool:
    """Return whether at least as many other threads run or wait for a processor as there are processors."""
    try:
        with open("/proc/loadavg") as load:
            return int(load.read().split()[3].partition("/")[0]) > _processors
    except (OSError, ValueError, IndexError):
        return False


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
