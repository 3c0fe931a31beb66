"""The owner's watch of its engine cores: one that is stopped, or does not come on, is condemned and replaced.

Its own sentinel cannot say so: that is a thread of the same process. One that was killed is told of here too: the
system closes what it had open, by which others notice, only when it has taken back its memory, which may take seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from holdfast.core.config import HoldfastConfig
from holdfast.core.ports import Devices
from holdfast.core.stalls.stalls import Stall
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.hosts.vllm.process.device_health import device_health
from holdfast.progress.processes import ZOMBIE, look_at
from holdfast.sentinel.incident_files import IncidentFiles
from holdfast.sentinel.stall_watch import PERIOD_S, ProgressWatch

# An engine core that is condemned costs more than a rank, and often nothing stands ready to take its place.
LIMITS = Limits(stopped_s=1.5)

Condemn = Callable[[Stall], None]
Pids = Callable[[], Mapping[int, int]]
Ended = Callable[[int, int], None]  # which one, and how, as wait(2) tells it


class EngineWatch:
    """Asks for the processes of the engine cores, and says once of each which one stalls, and which one has ended."""

    def __init__(self, config: HoldfastConfig, pids: Pids, condemn: Condemn, ended: Ended) -> None:
        self._config = config
        self._pids = pids
        self._condemn = condemn
        self._ended = ended
        self._over: set[int] = set()  # processes
        self._watches: dict[int, ProgressWatch] = {}  # each its own: none waits for another in what is watched
        self._condemned: set[int] = set()
        self._devices: Devices | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="EngineWatch", daemon=True)

    def start(self) -> None:
        self._devices = device_health()
        self._thread.start()

    def close(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        for engine_id, pid in self._pids().items():
            if self._is_over(engine_id, pid):
                continue
            watch = self._watches.setdefault(engine_id, ProgressWatch(self._config.runtime_dir, LIMITS))
            stalls = watch.look(now, {engine_id: pid}) if pid not in self._condemned else []
            for stall in stalls:
                self._condemned.add(pid)
                self._keep(stall, engine_id)
                self._condemn(stall)

    def _is_over(self, engine_id: int, pid: int) -> bool:
        process = look_at(pid)
        if process.state == ZOMBIE and pid not in self._over:
            self._over.add(pid)
            self._ended(engine_id, process.exit_status)
        return process.state == ZOMBIE

    def _keep(self, stall: Stall, engine_id: int) -> None:
        files = IncidentFiles(self._config.incident_dir, self._config.runtime_dir, engine_id)
        files.devices = self._devices
        files.keep(stall, {})
