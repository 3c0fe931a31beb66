"""Effects of an injected fault on the thread that reaches the fault. Every wait is bounded: a test may be forgotten."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import cast

from holdfast.core.faults.injection import FaultKind, InjectedFault, InjectionSpec, UncontainedFault

LONGEST_S = 3600.0


def trigger(spec: InjectionSpec) -> None:
    """Carry out an injected fault in the calling thread.

    Raises:
        InjectedFault: at once, or after `LONGEST_S` for a hang; never for `slow`.
    """
    match spec.kind:
        case FaultKind.RAISE | FaultKind.NAN:
            pass
        case FaultKind.CRASH:
            raise UncontainedFault(spec)
        case FaultKind.SLOW:
            time.sleep(spec.seconds)
            return
        case FaultKind.OOM:
            raise _out_of_memory(spec)
        case FaultKind.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case FaultKind.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case FaultKind.HANG:
            threading.Event().wait(LONGEST_S)
        case FaultKind.SPIN:
            _spin(time.monotonic() + LONGEST_S)
        case FaultKind.DEADLOCK:
            _take_twice(threading.Lock())
    raise InjectedFault(spec)


def _out_of_memory(spec: InjectionSpec) -> Exception:
    """Make the error that torch raises for any device, with the phase of an injected fault."""
    from torch import OutOfMemoryError

    error = OutOfMemoryError(f"CUDA out of memory. {spec.message}")
    error.phase = spec.phase
    return cast(Exception, error)


def _spin(until: float) -> None:
    while time.monotonic() < until:
        pass


def _take_twice(lock: threading.Lock) -> None:
    with lock:
        lock.acquire(timeout=LONGEST_S)
