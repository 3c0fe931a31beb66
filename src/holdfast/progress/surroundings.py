"""The machine around a process: memory, pressure on memory, disks and processors, load. Linux only.

Unreadable values are left out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from holdfast.progress.processes import own_group

_MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
_PRESSURES = ("cpu", "memory", "io")
_OF_THE_GROUP = ("memory.current", "memory.max", "memory.swap.current", "memory.swap.max")


def look_around(root: Path = Path("/")) -> dict[str, Any]:
    """Return memory and load of the machine, the share of waiting time (PSI), and limits of the control group."""
    return {
        "memory": fields(root / "proc/meminfo", _MEMORY),
        "load": os.getloadavg(),
        "pressure": {name: found for name in _PRESSURES if (found := _pressure(root / "proc/pressure" / name))},
        "control_group": _control_group(root),
    }


def fields(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the `name: value` lines of a file with the given names."""
    pairs = (line.partition(":") for line in read(path).splitlines())
    return {name: value.strip() for name, _, value in pairs if name in names}


def read(path: Path) -> str:
    """Return a file's text; empty when unreadable."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _pressure(path: Path) -> dict[str, dict[str, float]]:
    """Return `some` and `full`: percent of the last 10, 60 and 300 s, and microseconds since the start (`total`)."""
    found: dict[str, dict[str, float]] = {}
    for line in read(path).splitlines():
        kind, *pairs = line.split()
        found[kind] = {name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    return found


def _control_group(root: Path) -> dict[str, str]:
    """Return the values of version 2: at the group's own path, or at the top, where a container sees them."""
    top = root / "sys/fs/cgroup"
    for folder in (top / own_group(root), top):
        if found := {name: text for name in _OF_THE_GROUP if (text := read(folder / name).strip())}:
            return found
    return {}
