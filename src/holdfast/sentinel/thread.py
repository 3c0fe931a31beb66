"""What every sentinel has: addresses in the private folder of the instance, and a thread that owns its sockets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from holdfast.wire import Delivery, Station

_LINK = b"link-"


def client_address(runtime_dir: str) -> str:
    return f"ipc://{runtime_dir}/client"


def engine_address(runtime_dir: str, engine_id: int) -> str:
    return f"ipc://{runtime_dir}/engine-{engine_id}"


def engine_identity(engine_id: int) -> bytes:
    return b"engine-%d" % engine_id


def worker_identity(rank: int) -> bytes:
    return b"worker-%d" % rank


def link_identity(link_id: int) -> bytes:
    return _LINK + b"%d" % link_id


def is_link(identity: bytes) -> bool:
    return identity.startswith(_LINK)


logger = logging.getLogger("holdfast")

IDLE_S = 5.0  # a thread without anything to do by time wakes this rarely; deliveries and posts wake it at once


class SentinelThread:
    """Daemon thread that runs deliveries, posted calls and ticks in turn."""

    def __init__(
        self,
        name: str,
        station: Station,
        on_delivery: Callable[[Delivery], None],
        on_tick: Callable[[], None] = lambda: None,
        tick_s: Callable[[], float] = lambda: IDLE_S,
    ) -> None:
        self._station = station
        self._on_delivery = on_delivery
        self._on_tick = on_tick
        self._tick_s = tick_s
        self._posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the sentinel's thread. Never waits; any thread."""
        self._posted.put(call)
        self._station.wake()

    def close(self, timeout_s: float = 2.0) -> None:
        self._stop.set()
        self._station.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._guarded(self._turn)
        self._run_posted()
        self._station.close()

    def _turn(self) -> None:
        self._run_posted()
        delivery = self._station.receive(self._tick_s())
        if delivery is not None:
            self._on_delivery(delivery)
        self._on_tick()

    def _run_posted(self) -> None:
        while True:
            try:
                call = self._posted.get_nowait()
            except Empty:
                return
            self._guarded(call)

    def _guarded(self, call: Callable[[], None]) -> None:
        # A sentinel outlives its own mistakes: what it watches depends on it.
        try:
            call()
        except Exception:
            logger.exception("%s: unexpected error", self._thread.name)
