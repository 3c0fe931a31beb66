"""Finds the processes of a running server by their role, and kills one. Touches no other server.

The host names its processes; a process that starts or ends has no such name yet, and is no victim.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psutil


class ProcessKind(enum.StrEnum):
    """Roles of a server's processes."""

    WORKER = "worker"
    STANDBY = "standby"
    ENGINE_CORE = "engine-core"
    COORDINATOR = "coordinator"
    API_SERVER = "api-server"  # among several; a single API server owns everything else


_NAMES = {
    ProcessKind.WORKER: re.compile(r"VLLM::Worker(_(DP|TP|PP|EP)\d+)*"),
    ProcessKind.STANDBY: re.compile(r"VLLM::Standby(_(DP|TP|PP|EP)\d+)*"),
    ProcessKind.ENGINE_CORE: re.compile(r"VLLM::EngineCore(_DP\d+)?"),
    ProcessKind.COORDINATOR: re.compile(r"VLLM::(DP_?)?Coordinator", re.IGNORECASE),
    ProcessKind.API_SERVER: re.compile(r"VLLM::ApiServer_\d+", re.IGNORECASE),
}


@dataclass(frozen=True)
class Victim:
    """A process of a server."""

    kind: ProcessKind
    pid: int
    name: str


def kind_of(name: str) -> ProcessKind | None:
    """Return the role of a process name; None for an unknown name."""
    return next((kind for kind, pattern in _NAMES.items() if pattern.fullmatch(name)), None)


def find_victims(server_pid: int) -> list[Victim]:
    """Return every named process that a server's first process started."""
    return sorted(_victims(server_pid), key=lambda victim: (victim.kind, victim.name, victim.pid))


def _victims(server_pid: int) -> Iterator[Victim]:
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server_pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                name = "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
                if (kind := kind_of(name)) is not None:
                    yield Victim(kind, process.pid, name)


def count_by_kind(victims: list[Victim]) -> Counter[ProcessKind]:
    return Counter(victim.kind for victim in victims)


def client_ports(pid: int, server_port: int) -> frozenset[int]:
    """Return the clients' ports of the connections that a process serves; empty for an ended process."""
    with contextlib.suppress(psutil.Error):
        connections = psutil.Process(pid).net_connections(kind="tcp")
        open_ones = (one for one in connections if one.laddr.port == server_port and one.raddr)
        return frozenset(one.raddr.port for one in open_ones)
    return frozenset()


def kill(victim: Victim) -> bool:
    """Send SIGKILL; return false when the process had ended already."""
    try:
        os.kill(victim.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
