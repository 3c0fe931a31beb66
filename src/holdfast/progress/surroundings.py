"""How the machine around a process is: memory, what waits for memory, disks and processors, load. Linux only.

What cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from holdfast.progress.oom import own_group

_MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
_PRESSURES = ("cpu", "memory", "io")
_OF_THE_GROUP = ("memory.current", "memory.max", "memory.swap.current", "memory.swap.max")


def look_around(root: Path = Path("/")) -> dict[str, Any]:
    """The machine's memory and load, the share of time in which work waited (PSI), and this control group's limits."""
    return {
        "memory": fields(root / "proc/meminfo", _MEMORY),
        "load": os.getloadavg(),
        "pressure": {name: found for name in _PRESSURES if (found := _pressure(root / "proc/pressure" / name))},
        "control_group": _control_group(root),
    }


def fields(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Lines `name: value` of a file, those with these names."""
    pairs = (line.partition(":") for line in read(path).splitlines())
    return {name: value.strip() for name, _, value in pairs if name in names}


def read(path: Path) -> str:
    """A file's text; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def _pressure(path: Path) -> dict[str, dict[str, float]]:
    """`some` and `full`: per cent of the last 10, 60 and 300 s, and microseconds since the start (`total`)."""
    found: dict[str, dict[str, float]] = {}
    for line in read(path).splitlines():
        kind, *pairs = line.split()
        found[kind] = {name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    return found


def _control_group(root: Path) -> dict[str, str]:
    """Of version 2: under its own path, or at the top, where a container sees its own."""
    top = root / "sys/fs/cgroup"
    for folder in (top / own_group(root), top):
        if found := {name: text for name in _OF_THE_GROUP if (text := read(folder / name).strip())}:
            return found
    return {}
