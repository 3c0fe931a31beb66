"""Notice that a worker process of an engine core has ended, and report which. One thread, no polling of processes."""

from __future__ import annotations

import logging
import multiprocessing.connection
from collections.abc import Callable, Mapping
from typing import Any, cast

from holdfast.hosts.vllm.process.lifecycle import explain_exit
from holdfast.progress.processes import oom_kills
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

LOOK_S = 1.0  # bound of the time until the thread notices `stop`

REAP_S = 0.2

OnDeath = Callable[[int, int, str, int | None], None]


class WorkerExitWatch:
    """Watches the process of each rank until stopped.

    `on_death` is called with the rank, the process id, how the process ended, and the exit code.
    """

    def __init__(self, processes: Mapping[int, Any], on_death: OnDeath) -> None:
        self._by_sentinel = {process.sentinel: (rank, process) for rank, process in processes.items()}
        self._on_death = on_death
        self._oom_kills = oom_kills()
        self._thread = WatchThread("WorkerExitWatch", self._look)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Report no death from now on. Does not wait for the thread."""
        self._thread.close()

    def _look(self) -> None:
        """Report the deaths of at most `LOOK_S`; one that cannot be reported stays, for the next look."""
        if not self._by_sentinel:
            self._thread.close()
            return
        for sentinel in multiprocessing.connection.wait(list(self._by_sentinel), LOOK_S):
            if not self._thread.is_closed:
                self._report(*self._by_sentinel[cast(int, sentinel)])
            del self._by_sentinel[cast(int, sentinel)]

    def _report(self, rank: int, process: Any) -> None:
        how = self._explain(process)
        if self._thread.is_closed:
            return  # the rank is being replaced already
        logger.error("rank %d (pid %s) is gone: %s", rank, process.pid, how)
        self._on_death(rank, process.pid, how, process.exitcode)

    def _explain(self, process: Any) -> str:
        try:
            process.join(REAP_S)  # the sentinel is ready a moment before the exit code
            return explain_exit(process.exitcode, self._oom_kills)
        except Exception as error:  # the death counts more than the cause
            return f"how is unknown: {error}"
