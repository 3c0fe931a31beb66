"""Notice that a worker process of an engine core has ended, and report which. One thread, no polling of processes."""

from __future__ import annotations

import logging
import multiprocessing.connection
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from holdfast.hosts.vllm.process.lifecycle import explain_exit
from holdfast.progress.processes import oom_kills

logger = logging.getLogger("holdfast")

LOOK_S = 1.0  # bound of the time until the thread notices `stop`

REAP_S = 0.2

OnDeath = Callable[[int, str, int | None], None]


class WorkerExitWatch:
    """Watches the process of each rank until stopped.

    `on_death` is called with the rank, how the process ended, and the exit code.
    """

    def __init__(self, processes: Mapping[int, Any], on_death: OnDeath) -> None:
        self._by_sentinel = {process.sentinel: (rank, process) for rank, process in processes.items()}
        self._on_death = on_death
        self._oom_kills = oom_kills()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="WorkerExitWatch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Report no death from now on. Does not wait for the thread."""
        self._stopped.set()

    def _run(self) -> None:
        while self._by_sentinel and not self._stopped.is_set():
            for sentinel in multiprocessing.connection.wait(list(self._by_sentinel), LOOK_S):
                rank, process = self._by_sentinel.pop(cast(int, sentinel))
                if not self._stopped.is_set():
                    self._report(rank, process)

    def _report(self, rank: int, process: Any) -> None:
        process.join(REAP_S)  # the sentinel is ready a moment before the exit code
        if self._stopped.is_set():
            return  # the rank is being replaced already
        how = explain_exit(process.exitcode, self._oom_kills)
        logger.error("rank %d (pid %s) is gone: %s", rank, process.pid, how)
        self._on_death(rank, how, process.exitcode)
