"""Watches the processes beside the engine cores, in the process that owns them, and starts others in their places.

Judges nothing but whether one was asked to end. The host is shown stand-ins: to it one of these processes ends only
when it has ended for good.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from holdfast.core.protocol.effects import ReplaceProcess
from holdfast.sentinel import ClientSentinel

logger = logging.getLogger("holdfast")

KNOWN_TIMEOUT_S = 1.0
ASKED_S = 1.0  # a signal that ends all processes of a session reaches them one by one
_WATCH_S = 1.0


class FrontEndProcess(Protocol):
    """A process that is watched."""

    @property
    def name(self) -> str: ...

    @property
    def process(self) -> Any:
        """The one that is there, or was there last."""
        ...

    def note_loss(self) -> None:
        """It is gone, and does not come back by itself."""
        ...

    def unrecoverable_reason(self) -> str:
        """Why nobody could start another one; empty where somebody can."""
        ...

    def start_replacement(self, on_started: Callable[[], None]) -> None:
        """Start another process and wait until it does its work; `on_started` once it would end with the others.

        Raises: anything, when that does not come to be; it may still be running then.
        """
        ...


class ProcessProxy:
    """What the host watches in the place of a member."""

    def __init__(self, member: FrontEndProcess) -> None:
        self._process = member
        self.sentinel, self._end = multiprocessing.Pipe(duplex=False)

    def end(self) -> None:
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
    """Of one instance. `ends_within` waits so many seconds for the instance to end, and says whether it has."""

    def __init__(self, sentinel: ClientSentinel, ends_within: Callable[[float], bool]) -> None:
        self._sentinel = sentinel
        self._instance_ends_within = ends_within
        self._closed = threading.Event()
        self._processes: dict[str, FrontEndProcess] = {}
        self._proxies: dict[str, ProcessProxy] = {}
        self._gone: set[str] = set()  # they are replaced, or have ended for good
        self._thread = threading.Thread(target=self._watch, name="FrontEndWatch", daemon=True)

    def start(self, processes: Sequence[FrontEndProcess]) -> None:
        self.add(processes)
        self._thread.start()

    def add(self, processes: Sequence[FrontEndProcess]) -> None:
        """Watch these too."""
        self._processes = {**self._processes, **{member.name: member for member in processes}}
        for member in processes:
            self._sentinel.process_attached(member.name, member.process.pid)

    def proxy(self, name: str) -> ProcessProxy:
        """What the host is to watch in its place."""
        if name not in self._proxies:
            self._proxies[name] = ProcessProxy(self._processes[name])
        return self._proxies[name]

    def close(self) -> None:
        """Whoever ends from now on was asked to. Idempotent."""
        self._closed.set()

    def give_up(self) -> None:
        """The instance is defeated: those that are gone will not come back."""
        for name in tuple(self._gone):
            self._ended_for_good(name)

    # ---- noticing

    def _watch(self) -> None:
        while not self._ends_within(0.0):
            watched = {m.process.sentinel: m for m in self._processes.values() if m.name not in self._gone}
            if not watched:
                self._closed.wait(_WATCH_S)
                continue
            for sentinel in multiprocessing.connection.wait(list(watched), _WATCH_S):
                self._judge(watched[cast(int, sentinel)])

    def _judge(self, member: FrontEndProcess) -> None:
        process = member.process
        process.join(KNOWN_TIMEOUT_S)  # its sentinel says that it ends before the system says how
        self._gone.add(member.name)
        if process.exitcode == 0:
            self._ended_for_good(member.name)
        elif not self._ends_within(ASKED_S if process.exitcode in (-signal.SIGTERM, -signal.SIGINT) else 0.0):
            member.note_loss()
            self._sentinel.process_lost(member.name, f"exit code {process.exitcode}", member.unrecoverable_reason())

    def _ended_for_good(self, name: str) -> None:
        if (proxy := self._proxies.get(name)) is not None:
            proxy.end()

    def _ends_within(self, seconds: float) -> bool:
        return self._closed.is_set() or self._instance_ends_within(seconds) or self._closed.is_set()

    # ---- replacing

    def replace(self, order: ReplaceProcess) -> None:
        """Start another process, on a thread of its own."""
        member = self._processes[order.process]
        name = f"Restart-{order.process}"
        threading.Thread(target=self._replace, args=(member, order.after_s), name=name, daemon=True).start()

    def _replace(self, member: FrontEndProcess, after_s: float) -> None:
        if self._ends_within(after_s):
            return
        try:
            member.start_replacement(lambda: self._end_with_the_others(member))
        except Exception as error:
            self._did_not_start(member, error)
            return
        self._sentinel.process_returned(member.name, member.process.pid)
        self._gone.discard(member.name)

    def _end_with_the_others(self, member: FrontEndProcess) -> None:
        """It may have been started too late for the host to see."""
        if self._ends_within(0.0):
            member.process.kill()

    def _did_not_start(self, member: FrontEndProcess, error: Exception) -> None:
        member.process.kill()
        member.note_loss()
        if not self._ends_within(0.0):
            logger.error("another %s did not start", member.name, exc_info=error)
            why = f"what was to take its place did not start: {' '.join(str(error).split())}"
            self._sentinel.process_lost(member.name, why, member.unrecoverable_reason())
