"""Start and end of the processes of an instance: spawning, exits in words, and process trees."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import psutil

from holdfast.core.config import HoldfastConfig
from holdfast.hosts.vllm.process.logs import flush_log
from holdfast.hosts.vllm.process.priority import hurry
from holdfast.hosts.vllm.process.settings import NOTHING, Heritage, handed_down
from holdfast.progress.processes import GONE, ZOMBIE, look_at, oom_kills, start_ticks, why_killed

logger = logging.getLogger("holdfast")

EXIT_FAILED = 1  # the exit code after an exception

EXIT_CODE_TIMEOUT_S = 1.0  # a process sentinel tells of an exit before the system knows the exit code

LINGER_S = 5.0  # workers follow a dead engine core by themselves, or are killed then

_spawning = threading.Lock()  # the settings travel in the environment, which all threads share


@contextlib.contextmanager
def spawning(config: HoldfastConfig, heritage: Heritage = NOTHING, sockets: str | None = None) -> Iterator[None]:
    """Let processes that are started inside inherit the settings of the instance. Threads take turns.

    The arguments are passed on as by `handed_down`.
    """
    with _spawning, handed_down(config, heritage, sockets):
        yield


def why_cannot_spawn() -> str:
    """Return why the current process cannot start processes; empty when a start is possible."""
    from vllm.utils.system_utils import get_mp_context

    method = get_mp_context().get_start_method()
    return (
        ""
        if method == "spawn"
        else f"this process starts others by {method}, which is unsafe in a serving process; spawn is needed"
    )


# ---- exits


def explain_exit(exit_code: int | None, oom_kills_before: Mapping[str, int]) -> str:
    """Describe an exit; for SIGKILL, add whether the kernel killed the process because memory ran out. Never raises.

    `oom_kills_before` are the kernel's counts when the process was known to be alive.
    """
    how = describe_exit(exit_code)
    try:
        return f"{how}, {why_killed(oom_kills_before, oom_kills())}" if exit_code == -signal.SIGKILL else how
    except Exception:  # the exit counts more than the cause
        logger.exception("the cause of an exit cannot be found")
        return how


def describe_exit(exit_code: int | None) -> str:
    """Describe an exit code of `multiprocessing`: negative for a signal, None during the exit."""
    if exit_code is None:
        return "it is ending"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def exit_within(seconds: float) -> None:
    """End the process after a failure, unless the process ends by itself before. Does not wait.

    An engine core that has failed must end in bounded time: its requests resume elsewhere once the process is gone.
    """
    threading.Thread(target=_exit_after, args=(seconds,), name="holdfast-exit", daemon=True).start()


def _exit_after(seconds: float) -> None:
    threading.Event().wait(seconds)
    logger.error("process %d has failed and did not end within %g s; exiting now", os.getpid(), seconds)
    flush_log()
    os._exit(EXIT_FAILED)


# ---- process trees


def end_processes(pids: Sequence[int], lost_at_ticks: int, linger_s: float | None = None) -> None:
    """Wait until the workers of a dead engine core have ended, and kill the rest.

    Args:
        pids: the workers' process ids.
        lost_at_ticks: of `ticks_now`; younger processes are not workers of the dead engine core.
        linger_s: how long they are waited for; `LINGER_S` where not given.
    """
    linger_s = LINGER_S if linger_s is None else linger_s
    for pid in _left_after(linger_s, pids, lost_at_ticks):
        if start_ticks(pid) is None:
            logger.error("process %d cannot be identified and is not killed; kill the process by hand", pid)
            continue
        if linger_s:
            logger.warning("process %d did not follow its engine core within %g s; killing it", pid, linger_s)
        kill_tree(pid)
    _left_after(LINGER_S, pids, lost_at_ticks)  # the system releases their memory


def all_live(pids: Sequence[int], lost_at_ticks: int) -> bool:
    """Return whether every worker of a dead engine core lives for certain; False without any."""
    return bool(pids) and all(start_ticks(pid) is not None and _is_left(pid, lost_at_ticks) for pid in pids)


def _left_after(seconds: float, pids: Sequence[int], lost_at_ticks: int) -> list[int]:
    """Wait at most `seconds` until all processes have ended, and return the processes that have not."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if _is_left(pid, lost_at_ticks)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_left(pid: int, lost_at_ticks: int) -> bool:
    """Return whether a process lives, in our session and from before the loss: the system reuses ids.

    A process that cannot be looked at counts as left: unknown is not gone.
    """
    if look_at(pid).state in (GONE, ZOMBIE):
        return False
    try:
        if os.getsid(pid) != os.getsid(0):
            return False
    except ProcessLookupError:
        return False
    except OSError:
        pass
    started = start_ticks(pid)
    return started is None or started <= lost_at_ticks


def hurry_tree(pid: int) -> None:
    """Give a process and all descendants ordinary priority."""
    for each in _tree(pid):
        hurry(each)


def kill_tree(pid: int) -> None:
    """Kill a process and all descendants, at least the process where no descendant can be found."""
    for each in _tree(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)


def _tree(pid: int) -> list[int]:
    """Return a process and all descendants; the process alone when the system does not tell."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []
    except (psutil.Error, OSError):
        return [pid]
