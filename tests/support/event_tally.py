"""Count of the events that real servers publish, by kind: faults that a run injected, engine cores that it lost."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter

import httpx
import zmq

from holdfast.chaos.control import token_headers
from holdfast.chaos.server import Server

TOPIC = b"vllm_fault"
LOOK_MS = 200
STATUS_TIMEOUT_S = 10
MAX_QUEUED = 100_000


class EventTally:
    """Subscriber to the event sockets of every server of a session."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        self._addresses: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="event-tally", daemon=True)
        self._thread.start()

    def listen_to(self, server: Server) -> None:
        """Subscribe to the events of a server that has just become ready."""
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            headers = token_headers(server.url)
            answer = httpx.get(f"{server.url}/fault_tolerance/status", headers=headers, timeout=STATUS_TIMEOUT_S)
            address = str(answer.json()["notify_address"])
            with self._lock:
                self._addresses.append(address)

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)

    def _receive(self) -> None:
        with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
            subscriber.setsockopt(zmq.SUBSCRIBE, TOPIC)
            subscriber.setsockopt(zmq.RCVHWM, MAX_QUEUED)
            subscriber.setsockopt(zmq.RECONNECT_IVL, -1)  # another server may have the port next
            subscriber.setsockopt(zmq.LINGER, 0)
            while not self._over.is_set():
                with self._lock:
                    new, self._addresses = self._addresses, []
                for address in new:
                    subscriber.connect(address)
                if subscriber.poll(LOOK_MS):
                    _, body = subscriber.recv_multipart()
                    self.by_kind[json.loads(body)["event"]["kind"]] += 1
