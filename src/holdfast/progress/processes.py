"""What the system says of a process: its state, and how long its threads waited for a processor. Linux only."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

GONE = "X"


@dataclass(frozen=True)
class ProcessLook:
    """`state` is the letter of proc(5): R runs or waits for a processor, S and D wait, T is stopped, t is traced."""

    state: str
    cpu_s: float = 0.0


_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def look_at(pid: int) -> ProcessLook:
    """State and processor time of a process; state X for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ProcessLook(GONE)
    return ProcessLook(fields[0], (int(fields[11]) + int(fields[12])) / _TICKS_PER_S)


def starved_s(pid: int) -> dict[int, float]:
    """Seconds that each thread stood ready to run and got no processor, since it began.

    Empty where the system does not count them.
    """
    waited: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                waited[int(thread)] = int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1]) / 1e9
    return waited
