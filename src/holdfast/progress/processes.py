"""The system's view of processes: state, how long threads waited for a processor, kills for lack of memory.

Linux only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GONE, ZOMBIE = "X", "Z"
UNKNOWN = "?"  # the process cannot be looked at, for instance for lack of a file descriptor, and may well live
MAX_DESCENDANTS = 256
CONTAINER, MACHINE = "in this container", "on this machine"  # where the kernel counts kills for lack of memory


@dataclass(frozen=True)
class ProcessLook:
    """State of a process.

    `state` is the letter of proc(5): R runs or waits for a processor, S and D wait, T is stopped, t is traced, Z has
    ended, X is gone. `?` stands for a process that cannot be looked at: unknown is not gone. `exit_status` of a process
    in Z is encoded as by wait(2); 0 when the system does not tell.
    """

    state: str
    cpu_s: float = 0.0
    exit_status: int = 0


_START_TIME = 19  # of the fields after the name, in proc(5)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def look_at(pid: int) -> ProcessLook:
    """Return state and processor time of a process; state X for a process that is gone, `?` for an unknown state."""
    try:
        # Bytes: the name before the fields may be cut in the middle of a character.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode("ascii", "replace").split()
        exit_status = int(fields[-1]) if fields[0] == ZOMBIE else 0
        return ProcessLook(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S, exit_status)
    except (FileNotFoundError, ProcessLookupError):
        return ProcessLook(GONE if _is_gone(pid) else UNKNOWN)
    except (OSError, ValueError, IndexError):
        return ProcessLook(UNKNOWN)


def _is_gone(pid: int) -> bool:
    """Return whether the system knows no process with the id; a hidden entry in /proc is no proof."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def ticks_now() -> int:
    """Return the clock ticks since the machine's start, comparable with `start_ticks`; no clock change moves them."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS_PER_S)


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the machine's start; None for an unknown process.

    Together with the process id the time names a process: the system reuses ids.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[_START_TIME])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class ThreadTimes:
    """Seconds since the start of a thread: running, and ready to run without a processor."""

    ran_s: float
    waited_s: float

    @property
    def ready_s(self) -> float:
        return self.ran_s + self.waited_s


def thread_times(pid: int) -> dict[int, ThreadTimes]:
    """Return the times of each thread of a process; empty when the system does not count them."""
    times: dict[int, ThreadTimes] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                ran, waited = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[:2]
                times[int(thread)] = ThreadTimes(int(ran) / 1e9, int(waited) / 1e9)
    return times


def descendants(pid: int) -> set[int]:
    """Return all processes started by a process, transitively (compilers, for instance); empty when unknown."""
    found: set[int] = set()
    to_ask = [pid]
    while to_ask and len(found) < MAX_DESCENDANTS:
        children = _children(to_ask.pop()) - found
        found |= children
        to_ask += children
    return found


def _children(pid: int) -> set[int]:
    children: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError):
                children |= set(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
    return children


# ---- kills by the kernel for lack of memory


def oom_kills(root: Path = Path("/")) -> dict[str, int]:
    """Return the number of processes killed so far, by place of the counter; empty without counters."""
    counted: dict[str, int] = {}
    for where, files in ((CONTAINER, _of_cgroup(root)), (MACHINE, (root / "proc/vmstat",))):
        for file in files:
            if (count := _count_in(file)) is not None:
                counted[where] = count
                break
    return counted


def why_killed(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """Interpret two counts around the death of a process by SIGKILL."""
    if not after:
        return "perhaps by the kernel because memory ran out: the kernel's count of such kills is not readable"
    for where, count in after.items():
        if (kills := count - before.get(where, count)) > 0:
            return f"most likely by the kernel: memory ran out {where}, {kills} processes killed meanwhile"
    return "not because memory ran out: the kernel counted no such kill"


def _of_cgroup(root: Path) -> tuple[Path, ...]:
    """Return the candidate files of the own group's counter: version 2, then 1; by path, then at the top."""
    path = own_group(root)
    v2, v1 = root / "sys/fs/cgroup", root / "sys/fs/cgroup/memory"
    return (
        v2 / path / "memory.events",
        v2 / "memory.events",
        v1 / path / "memory.oom_control",
        v1 / "memory.oom_control",
    )


def own_group(root: Path) -> str:
    """Return the path of the process's control group, without a leading slash; empty without a group."""
    with contextlib.suppress(OSError, ValueError):
        for line in os.fsdecode((root / "proc/self/cgroup").read_bytes()).splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                return path.lstrip("/")
    return ""


def _count_in(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None
