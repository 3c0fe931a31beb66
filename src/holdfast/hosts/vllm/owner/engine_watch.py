"""The owner's watch over its engine cores: finds stalled and killed ones.

An engine core's own sentinel cannot report a stop, as a thread of the same process. A kill is reported here before the
process sentinel tells of it: the system closes a process's files only after it has released the memory, which may take
seconds.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping

from holdfast.core.config import HoldfastConfig
from holdfast.core.ports import Devices
from holdfast.core.stalls.stalls import Stall
from holdfast.core.stalls.step_deadlines import Limits
from holdfast.hosts.vllm.process.device_health import device_health
from holdfast.progress.processes import GONE, ZOMBIE, look_at, start_ticks
from holdfast.sentinel.incident_files import StallFiles
from holdfast.sentinel.stall_watch import PERIOD_S, ProgressWatch
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

# The replacement of an engine core costs more than that of a rank, and often no standby is ready.
LIMITS = Limits(stopped_s=1.5)

OnStall = Callable[[Stall], None]
Pids = Callable[[], Mapping[int, int]]
OnExit = Callable[[int, int], None]  # engine id and status, as of wait(2)


class EngineWatch:
    """Watch over the engine cores, on a thread; reports each stall and each exit once.

    Args:
        pids: returns the process id of each engine core to watch, by engine id.
    """

    def __init__(self, config: HoldfastConfig, pids: Pids, on_stall: OnStall, on_exit: OnExit) -> None:
        self._config = config
        self._pids = pids
        self._on_stall = on_stall
        self._on_exit = on_exit
        self._exited: set[int] = set()  # process ids
        self._watches: dict[
            int, ProgressWatch
        ] = {}  # by engine id: an engine core is judged without regard to the others
        self._stalled: set[int] = set()  # process ids
        self._devices: Devices | None = None
        self._thread = WatchThread("EngineWatch", lambda: self.look(time.monotonic()), PERIOD_S)

    def start(self) -> None:
        self._devices = device_health()
        self._thread.start()

    def close(self) -> None:
        self._thread.close()

    def look(self, now: float) -> None:
        """Examine every engine core once; `now` is monotonic seconds. A failure with one costs the others nothing."""
        for engine_id, pid in self._pids().items():
            try:
                self._look_at(engine_id, pid, now)
            except Exception:
                self._thread.note_failure()

    def _look_at(self, engine_id: int, pid: int, now: float) -> None:
        if self._has_exited(engine_id, pid):
            return
        watch = self._watches.setdefault(engine_id, ProgressWatch(self._config.runtime_dir, LIMITS))
        stalls = watch.observe(now, {engine_id: pid}) if pid not in self._stalled else []
        for stall in stalls:
            self._stalled.add(pid)
            proceed = functools.partial(self._report_stall, stall, start_ticks(pid))
            self._keep_evidence(stall, engine_id, proceed)

    def _has_exited(self, engine_id: int, pid: int) -> bool:
        process = look_at(pid)
        if process.state == ZOMBIE and pid not in self._exited:
            self._exited.add(pid)
            self._on_exit(engine_id, process.exit_status)
        return process.state == ZOMBIE

    def _report_stall(self, stall: Stall, started: int | None) -> None:
        """Report a stall, unless the process has ended meanwhile: the system may have reused the process id.

        A process that cannot be looked at is reported: unknown is not gone.
        """
        present = start_ticks(stall.pid)
        is_same = look_at(stall.pid).state != GONE if None in (present, started) else present == started
        if is_same:
            self._on_stall(stall)

    def _keep_evidence(self, stall: Stall, engine_id: int, then: Callable[[], None]) -> None:
        try:
            files = StallFiles(self._config.incident_dir, self._config.runtime_dir, engine_id)
        except Exception:  # the repair counts more than the evidence
            self._thread.note_failure()
            then()
            return
        files.devices = self._devices
        files.keep_within(stall, {}, then)
