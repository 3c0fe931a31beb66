"""Watch over the API servers and the coordinator, in the process that owns the engine cores; starts replacements.

Judges only whether an exit was requested. The host watches a proxy of each process, which ends when the process has
ended for good.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from holdfast.core.faults.redaction import account_of
from holdfast.core.protocol.effects import ReplaceProcess
from holdfast.hosts.vllm.process.lifecycle import EXIT_CODE_TIMEOUT_S
from holdfast.hosts.vllm.process.reserve import Reserve
from holdfast.sentinel import ClientSentinel
from holdfast.sentinel.watching import WatchThread

logger = logging.getLogger("holdfast")

REQUESTED_S = 1.0  # a signal that ends all processes of a session reaches them one by one
_WATCH_S = 1.0


class FrontEndProcess(Protocol):
    """A process beside the engine cores that can be replaced."""

    @property
    def name(self) -> str: ...

    @property
    def process(self) -> Any:
        """The current process, or the last known process."""
        ...

    def note_loss(self) -> None:
        """Correct the state that the lost process shared."""
        ...

    def unrecoverable_reason(self) -> str:
        """Return why no replacement can be started; empty when a start is possible."""
        ...

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        """Start a process and wait until the work is taken up.

        Call `on_started` once the host would end the process with all others.

        Raises:
            Exception: the process does not work; it may still be running then.
        """
        ...


class ProcessProxy:
    """Process object that the host watches in the place of a `FrontEndProcess`."""

    def __init__(self, process: FrontEndProcess) -> None:
        self._process = process
        self.sentinel, self._end = multiprocessing.Pipe(duplex=False)

    def end(self) -> None:
        """Let the host see the end of the process."""
        self._end.close()

    @property
    def name(self) -> str:
        return str(self._process.process.name)

    @property
    def pid(self) -> int | None:
        return cast("int | None", self._process.process.pid)

    @property
    def exitcode(self) -> int | None:
        return cast("int | None", self._process.process.exitcode)


class FrontEndWatch:
    """Watch over the front-end processes of an instance.

    Args:
        ends_within: waits so many seconds for the instance to end, and returns whether it has ended.
        reserve: what a replacement needs where the system has nothing left.
    """

    def __init__(self, sentinel: ClientSentinel, ends_within: Callable[[float], bool], reserve: Reserve) -> None:
        self._sentinel = sentinel
        self._instance_ends_within = ends_within
        self._reserve = reserve
        self._closed = threading.Event()
        self._processes: dict[str, FrontEndProcess] = {}
        self._proxies: dict[str, ProcessProxy] = {}
        self._starts: dict[str, ReplaceProcess] = {}  # the latest order for each process; older ones are void
        self._lost: set[str] = set()  # being replaced, or ended for good
        self._thread = WatchThread("FrontEndWatch", self._look)

    def start(self, processes: Sequence[FrontEndProcess]) -> None:
        """Watch `processes`, on a thread."""
        self.add(processes)
        self._thread.start()

    def add(self, processes: Sequence[FrontEndProcess]) -> None:
        """Watch more processes, and tell the sentinel of them."""
        self._processes = {**self._processes, **{process.name: process for process in processes}}
        for process in processes:
            self._sentinel.process_attached(process.name, process.process.pid)

    def proxy(self, name: str) -> ProcessProxy:
        """Return the process object that the host is to watch in the place of the process `name`."""
        if name not in self._proxies:
            self._proxies[name] = ProcessProxy(self._processes[name])
        return self._proxies[name]

    def close(self) -> None:
        """Treat every later exit as requested. Idempotent."""
        self._closed.set()

    def end_lost(self) -> None:
        """Let the host see the end of every lost process: a defeated instance replaces none."""
        for name in tuple(self._lost):
            self._end_proxy(name)

    # ---- losses

    def _look(self) -> None:
        if self._ends_within(0.0):
            self._thread.close()
            return
        watched = {p.process.sentinel: p for p in self._processes.values() if p.name not in self._lost}
        if not watched:
            self._closed.wait(_WATCH_S)
            return
        for sentinel in multiprocessing.connection.wait(list(watched), _WATCH_S):
            self._judge_exit(watched[cast(int, sentinel)])

    def _judge_exit(self, lost: FrontEndProcess) -> None:
        process = lost.process
        process.join(EXIT_CODE_TIMEOUT_S)
        self._lost.add(lost.name)
        if process.exitcode == 0:
            self._end_proxy(lost.name)
        elif not self._ends_within(REQUESTED_S if process.exitcode in (-signal.SIGTERM, -signal.SIGINT) else 0.0):
            self._report_loss(lost, f"exit code {process.exitcode}")

    def _report_loss(self, lost: FrontEndProcess, why: str) -> None:
        """Tell the sentinel of a loss, whatever goes wrong with the state that the lost process shared."""
        try:
            lost.note_loss()
        except Exception:
            logger.exception("the state that %s shared cannot be corrected", lost.name)
        self._sentinel.process_lost(lost.name, why, lost.unrecoverable_reason(), lost.process.pid)

    def _end_proxy(self, name: str) -> None:
        if (proxy := self._proxies.get(name)) is not None:
            proxy.end()

    def _ends_within(self, seconds: float) -> bool:
        return self._closed.is_set() or self._instance_ends_within(seconds) or self._closed.is_set()

    # ---- replacements

    def replace(self, effect: ReplaceProcess) -> None:
        """Start a replacement on a thread. Does not wait."""
        lost = self._processes[effect.process]
        name = f"Restart-{effect.process}"
        self._starts[lost.name] = effect
        self._reserve.run(name, lambda: self._replace(lost, effect))

    def _replace(self, lost: FrontEndProcess, effect: ReplaceProcess) -> None:
        if self._ends_within(effect.after_s) or self._starts.get(lost.name) is not effect:
            return
        try:
            with self._reserve.released():
                lost.start_replacement(lambda: self._kill_if_ending(lost))
        except Exception as error:
            self._report_failed_start(lost, error)
            return
        self._sentinel.process_returned(lost.name, lost.process.pid)
        self._lost.discard(lost.name)

    def _kill_if_ending(self, started: FrontEndProcess) -> None:
        """Kill a process that was started too late for the host to end."""
        if self._ends_within(0.0):
            started.process.kill()

    def _report_failed_start(self, lost: FrontEndProcess, error: Exception) -> None:
        lost.process.kill()
        if not self._ends_within(0.0):
            logger.error("the replacement of %s did not start", lost.name, exc_info=error)
            self._report_loss(lost, f"the replacement did not start: {account_of(error).message}")
