"""What an injected fault does to the thread that meets it. Nothing here waits for ever: a test may be forgotten."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import cast

from holdfast.core.faults.injection import FaultKind, InjectedFault, InjectionSpec, UncontainedFault

LONGEST_S = 3600.0


def happen(spec: InjectionSpec) -> None:
    """Let an armed fault happen in this thread. Raises sooner or much later; `slow` raises nothing."""
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
    """As torch raises it for any device, which knows its phase as every injected fault does."""
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
