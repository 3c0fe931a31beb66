"""What a repair needs beside memory, taken at the start: file descriptors, threads, a context of ZeroMQ.

A server that has used up its descriptors can neither start a process nor open a socket, and a new context of ZeroMQ
ends the process there. Descriptors of the reserve are closed for the time of a repair, and opened again afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import zmq

from holdfast.hosts.vllm.process.limits import raise_descriptor_limit

logger = logging.getLogger("holdfast")

DESCRIPTORS = 64
THREADS = 3
_LARGEST_SHARE = 4  # of a low limit the reserve takes at most a quarter


class Reserve:
    """Reserve of the process that owns an instance. Any thread.

    Args:
        descriptors: kept until a repair needs them; 0 for none.
        threads: started at once and idle until a repair needs them.
    """

    def __init__(self, descriptors: int = DESCRIPTORS, threads: int = THREADS) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = DESCRIPTORS * _LARGEST_SHARE if soft == resource.RLIM_INFINITY else soft
        self._wanted = min(descriptors, limit // _LARGEST_SHARE)
        self._held: list[int] = []
        self._repairs = 0
        self._lent = 0  # of the repairs
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = threads
        self._idle = threads
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.context.socket(zmq.PUSH).close(0)  # the context opens its files with the first socket
        for number in range(threads):
            threading.Thread(target=self._serve, name=f"Reserve-{number}", daemon=True).start()
        self._take()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Leave the descriptors to a repair inside the block."""
        self._release()
        try:
            yield
        finally:
            self._give_back()

    def lend(self, seconds: float) -> None:
        """Leave the descriptors to a repair for so long. Does not wait."""

        def wait() -> None:
            self._closed.wait(seconds)
            self._give_back(lent=1)

        self._release(lent=1)
        try:
            self.run("ReserveLent", wait)
        except RuntimeError:  # no thread is left to wait
            self._give_back(lent=1)

    def run(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` on an idle thread of the reserve, on a new thread when none is idle. Does not wait.

        Raises:
            RuntimeError: the system allows no further thread.
        """
        with self._lock:
            has_idle = self._idle > 0 and not self._closed.is_set()
            self._idle -= has_idle
        if has_idle:
            self._work.put(work)
        else:
            threading.Thread(target=work, name=name, daemon=True).start()

    def close(self) -> None:
        """Give everything up. Idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        for _ in range(self._threads):
            self._work.put(None)
        with self._lock:
            self._drop()
            is_in_use = self._repairs > self._lent
        if not is_in_use:  # a socket that another thread uses ends with the process
            self.context.destroy(linger=0)

    # ---- descriptors

    def _release(self, lent: int = 0) -> None:
        with self._lock:
            self._repairs += 1
            self._lent += lent
            self._drop()
        raise_descriptor_limit()

    def _give_back(self, lent: int = 0) -> None:
        with self._lock:
            self._repairs -= 1
            self._lent -= lent
        self._take()

    def _drop(self) -> None:
        held, self._held = self._held, []
        for descriptor in held:
            os.close(descriptor)

    def _take(self) -> None:
        """Open what is missing, as far as the limit allows."""
        with self._lock, contextlib.suppress(OSError):
            while not self._repairs and not self._closed.is_set() and len(self._held) < self._wanted:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    # ---- threads

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                logger.exception("%s: unexpected error", threading.current_thread().name)
            with self._lock:
                self._idle += 1
